"""One language model trained, one optimizer step after another.

Shapes: T time, B batch, V vocabulary.
"""

import math
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from lmsearch.config import RunConfig
from lmsearch.errors import ConfigError
from lmsearch.lm.adaptive import ranks_of
from lmsearch.lm.batches import (
    Window,
    as_indices,
    batchify,
    draw_windows,
    evaluation_blocks,
    shuffled_articles,
)
from lmsearch.lm.evaluate import EvaluationState, begin_evaluation, evaluate_blocks
from lmsearch.lm.events import Epoch, Event, Step, TrainState
from lmsearch.lm.model import LanguageModel, States
from lmsearch.lm.optimizers import Optimizer, PlateauRate, WeightAverage, improves, scheduled, should_average
from lmsearch.text.corpus import Corpus
from lmsearch.text.vocabulary import EOS, UNK


def train(
    config: RunConfig,
    corpus: Corpus,
    device: torch.device,
    state: TrainState | None = None,
    start: Callable[[LanguageModel], None] | None = None,
) -> Iterator[Event]:
    """Train one model, giving a `Step` after every optimizer step and evaluation block, an `Epoch` after each.

    With `state` it resumes where that was taken, and on a CPU (same type, same number of threads) computes
    exactly what the uninterrupted run would have. `start` may change the random weights of a new model. To stop is
    to stop iterating.
    """
    torch.set_num_threads(config.train.threads)
    run = _Run(config, corpus, device, start)
    if state is not None:
        run.restore(state)
    while not run.finished() or run.begin_finetuning():
        yield from run.train_epoch()
        yield from run.evaluate_epoch()
        yield run.end_epoch()


_one_at_a_time = threading.Lock()


class _Run:
    """The moving parts of one training run."""

    def __init__(
        self,
        config: RunConfig,
        corpus: Corpus,
        device: torch.device,
        start: Callable[[LanguageModel], None] | None = None,
    ) -> None:
        self.config = config
        self.corpus = corpus
        self.device = device
        seed = config.train.seed
        # The same weights on every device; PyTorch draws them from one generator, which threads would share.
        with _one_at_a_time, torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            line_end = corpus.vocabulary.index.get(EOS, -1)
            self.model = LanguageModel(config.model, len(corpus.vocabulary), _ranks(config, corpus), line_end)
        if start is not None:
            start(self.model)
        self.model.to(device)
        self.generator = None if device.type == "meta" else torch.Generator(device).manual_seed(seed)
        self.optimizer = Optimizer(self.model.parameters(), config.train, device)
        self.rate = PlateauRate(config.train)
        self.average = WeightAverage(self.model, config.train.ema) if config.train.ema else None
        self.valid_losses: list[float] = []
        self.finetune_from: int | None = None  # epochs before the second stage, once that has started
        self.steps = 0
        self.seconds = 0.0
        self.train_seconds = 0.0
        self._valid = evaluation_blocks(
            as_indices(corpus.valid.tokens),
            config.train.eval_batch_size,
            config.train.bptt,
            config.train.eval_context,
            device,
        )
        self._unknown = corpus.vocabulary.index.get(UNK, -1)
        self._train_tokens = as_indices(corpus.train.tokens)
        self._begin_epoch()

    # The order of an epoch: train, evaluate, end.

    def _begin_epoch(self) -> None:
        self.block = 0
        self.tokens = 0
        self.train_rows = 0
        self.train_total = torch.zeros((), dtype=torch.float64, device=self.device)
        self.states: States = self.model.initial_states(self.config.train.batch_size)
        self.evaluation: EvaluationState | None = None
        self.epoch = len(self.valid_losses) + 1

    def train_epoch(self) -> Iterator[Step]:
        """Train what is left of this epoch."""
        if self.evaluation is not None:
            return
        # Derived from seed and epoch, so that a state need not hold the order.
        rng = np.random.default_rng([self.config.train.seed, self.epoch])
        host_TB = self._epoch_tokens(rng)
        tokens_TB = host_TB.to(self.device)
        windows = draw_windows(len(tokens_TB), self.config.train.bptt, self.config.train.variable_bptt, rng)
        self.model.train()
        for window in windows[self.block :]:
            started = time.perf_counter()
            self._step(tokens_TB, window, host_TB, scheduled(self.config.train, self._epochs(len(windows))))
            self.block += 1
            self.steps += 1
            took = time.perf_counter() - started
            self.seconds += took
            self.train_seconds += took
            yield self._event()
        waited = self._wait_for_device()
        self.seconds += waited
        self.train_seconds += waited
        self.evaluation = begin_evaluation(self._evaluated(), self._valid)

    def _epoch_tokens(self, rng: np.random.Generator) -> Tensor:
        """Return the columns of an epoch, on the host."""
        tokens_N = self._train_tokens
        setting = self.config.data.shuffle_articles
        if self.corpus.shuffle_articles if setting is None else setting:
            tokens_N = as_indices(shuffled_articles(self.corpus.train, rng))
        return batchify(tokens_N, self.config.train.batch_size)

    def _epochs(self, windows: int) -> float:
        """Return the epochs that the next step completes, of which this one has so many windows."""
        return self.epoch - 1 + (self.block + 1) / windows

    def _step(self, tokens_TB: Tensor, window: Window, host_TB: Tensor | None = None, share: float = 1.0) -> None:
        settings = self.config.train
        self.optimizer.learning_rate = share * self.rate.learning_rate * window.drawn / settings.bptt
        rows = slice(window.start, window.start + window.length)
        following = slice(window.start + 1, window.start + 1 + window.length)
        states = [(hidden.detach(), cell.detach()) for hidden, cell in self.states]
        features = self.model.features(tokens_TB[rows], states, self.generator)
        host = None if host_TB is None else host_TB[following]
        loss = self.model.loss(features.dropped_TBH, tokens_TB[following], host)
        objective = loss
        if settings.activation_reg:
            objective = objective + settings.activation_reg * features.dropped_TBH.pow(2).mean()
        if settings.temporal_activation_reg:
            changes = features.raw_TBH[1:] - features.raw_TBH[:-1]
            objective = objective + settings.temporal_activation_reg * changes.pow(2).mean()
        self.optimizer.zero_grad()
        objective.backward()  # type: ignore[no-untyped-call]
        if settings.clip_norm:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), settings.clip_norm)
        self.optimizer.step()
        if self.average is not None:
            self.average.update(self.model)
        self.states = features.states
        self.train_total += loss.detach().to(torch.float64) * window.length
        self.train_rows += window.length
        self.tokens += window.length * settings.batch_size

    def evaluate_epoch(self) -> Iterator[Step]:
        """Evaluate what is left of this epoch's validation."""
        assert self.evaluation is not None
        started = time.perf_counter()
        for _ in evaluate_blocks(self._evaluated(), self._valid, self.evaluation, self._unknown):
            self.seconds += time.perf_counter() - started
            yield self._event()
            started = time.perf_counter()

    def end_epoch(self) -> Epoch:
        """Close the epoch: the only place where numbers are read from the device."""
        assert self.evaluation is not None
        self.seconds += self._wait_for_device()
        number, tokens = self.epoch, self.tokens
        rate = self.rate.learning_rate * scheduled(self.config.train, self.epoch - 0.5)
        train_loss = float(self.train_total) / self.train_rows
        found = self.evaluation.losses(self._valid.predictions)
        valid_loss = found.loss
        evaluated = self._evaluated()
        self._adjust(valid_loss)
        self.valid_losses.append(valid_loss)
        seconds, self.seconds = self.seconds, 0.0
        train_seconds, self.train_seconds = self.train_seconds, 0.0
        self._begin_epoch()
        return Epoch(
            number=number,
            train_loss=train_loss,
            valid_loss=valid_loss,
            seconds=seconds,
            tokens=tokens,
            learning_rate=rate,
            step=self.steps,
            state=self.state,
            weights=lambda: {name: tensor.cpu().clone() for name, tensor in evaluated.weights().items()},
            train_seconds=train_seconds,
            valid_known_loss=found.known_loss,
        )

    def _wait_for_device(self) -> float:
        """Wait until a GPU has finished its work, twice an epoch, and return the seconds that this took."""
        started = time.perf_counter()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter() - started

    def _adjust(self, valid_loss: float) -> None:
        """Divide the learning rate on a plateau, or begin to average where NT-ASGD says so."""
        settings = self.config.train
        if self.average is None or settings.ema:
            self.rate.see(improves(self.valid_losses, valid_loss))
            if settings.optimizer == "nt-asgd" and should_average(self.valid_losses, valid_loss, settings.nonmono):
                self.average = WeightAverage(self.model)
                self.rate = PlateauRate(settings)  # averaging is done at the full rate

    def finished(self) -> bool:
        """Whether all epochs are done, or no new best came for `patience` epochs."""
        settings = self.config.train
        if self.evaluation is not None:
            return False
        done = len(self.valid_losses)
        if self.finetune_from is not None:
            losses = self.valid_losses[self.finetune_from :]
            fired = len(losses) > 0 and should_average(losses[:-1], losses[-1], settings.nonmono)
            return self.block == 0 and (fired or len(losses) >= settings.epochs)
        if settings.patience and done > settings.patience and self.block == 0:
            recent = self.valid_losses[-settings.patience :]
            if not any(improves(self.valid_losses[: done - settings.patience], loss) for loss in recent):
                return True
        return done >= settings.epochs

    def begin_finetuning(self) -> bool:
        """Start the second stage of NT-ASGD, if the config asks for it and the first has averages; return whether.

        As AWD-LSTM's finetune.py: from the averages, which are averaged again from the first step on, until the
        trigger fires over this stage's losses; at the latest after as many epochs as the first stage had.
        """
        averaged = self.average is not None and self.average.steps > 0
        if not self.config.train.finetune or self.finetune_from is not None or not averaged:
            return False
        self.model.set_weights(self._evaluated().weights())
        self.average = WeightAverage(self.model)
        self.rate = PlateauRate(self.config.train)
        self.finetune_from = len(self.valid_losses)
        return True

    def _evaluated(self) -> LanguageModel:
        # Averages exist from the first step after the trigger.
        return self.average.model if self.average is not None and self.average.steps else self.model

    def _event(self) -> Step:
        return Step(epoch=self.epoch, step=self.steps, tokens=self.tokens, state=self.state)

    # Saving and resuming.

    def state(self) -> TrainState:
        """Copy everything that the rest of the run depends on to the CPU."""
        progress = {
            "block": self.block,
            "tokens": self.tokens,
            "train_rows": self.train_rows,
            "valid_losses": [repr(loss) for loss in self.valid_losses],  # nan and inf are not JSON
            "steps": self.steps,
            "seconds": self.seconds,
            "train_seconds": self.train_seconds,
            "learning_rate": self.rate.learning_rate,
            "stale": self.rate.stale,
            "average_steps": None if self.average is None else self.average.steps,
            "finetune_from": self.finetune_from,
            "evaluation_block": None if self.evaluation is None else self.evaluation.block,
        }
        tensors = {f"model.{name}": tensor for name, tensor in self.model.weights().items()}
        if self.average is not None:
            tensors |= {f"average.{name}": tensor for name, tensor in self.average.model.weights().items()}
        for number, slots in self.optimizer.slots.items():
            tensors |= {f"optimizer.{number}.{name}": slot for name, slot in slots.items()}
        tensors |= _name_states("states", self.states) | {"train_total": self.train_total}
        if self.evaluation is not None:
            tensors |= _name_states("evaluation", self.evaluation.states)
            tensors["evaluation_total"] = self.evaluation.total
            tensors["evaluation_known_total"] = self.evaluation.known_total
            tensors["evaluation_known"] = self.evaluation.known
        if self.generator is not None:
            tensors["generator"] = self.generator.get_state()
        return TrainState(
            progress, {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
        )

    def restore(self, state: TrainState) -> None:
        """Take the step at which `state` was saved, and leave `state` as it is."""
        progress = state.progress
        tensors = {
            name: tensor if name == "generator" else tensor.to(self.device, copy=True)
            for name, tensor in state.tensors.items()
        }
        try:
            self.model.set_weights(_part(tensors, "model."))
            if progress["average_steps"] is not None:
                self.average = WeightAverage(self.model, self.config.train.ema)
                self.average.steps = progress["average_steps"]
                self.average.model.set_weights(_part(tensors, "average."))
            self._restore_optimizer(state.tensors)
        except (KeyError, RuntimeError) as error:
            raise ConfigError("the saved state belongs to another config: its weights do not fit") from error
        self.valid_losses = [float(loss) for loss in progress["valid_losses"]]
        self.finetune_from = progress.get("finetune_from")
        self._begin_epoch()
        self.block, self.tokens = progress["block"], progress["tokens"]
        self.steps, self.seconds = progress["steps"], progress["seconds"]
        self.train_seconds = progress.get("train_seconds", self.seconds)  # checkpoints of the first versions lack it
        self.rate.learning_rate, self.rate.stale = progress["learning_rate"], progress["stale"]
        self.train_rows, self.train_total = progress["train_rows"], tensors["train_total"]
        self.states = _read_states("states", tensors)
        if progress["evaluation_block"] is not None:
            total = tensors["evaluation_total"]
            self.evaluation = EvaluationState(
                progress["evaluation_block"],
                _read_states("evaluation", tensors),
                total,
                # Those of lmsearch 0.2.0 and before lack the two: the known words' loss of this epoch is not known.
                tensors.get("evaluation_known_total", torch.full_like(total, math.nan)),
                tensors.get("evaluation_known", torch.zeros_like(total, dtype=torch.int64)),
            )
        if self.generator is not None:
            self._restore_generator(self.generator, tensors["generator"])

    def _restore_generator(self, generator: torch.Generator, state: Tensor) -> None:
        if len(state) == len(generator.get_state()):
            generator.set_state(state)
        else:  # another kind of device drew the masks so far: those that follow come from a seed of the step
            mixed = np.random.SeedSequence([self.config.train.seed, self.steps]).generate_state(1, np.uint64)
            generator.manual_seed(int(mixed[0] >> np.uint64(1)))

    def _restore_optimizer(self, tensors: dict[str, Tensor]) -> None:
        slots: dict[int, dict[str, Tensor]] = {}
        for name, tensor in _part(tensors, "optimizer.").items():
            number, slot = name.split(".")
            slots.setdefault(int(number), {})[slot] = tensor
        self.optimizer.restore(slots)


def _ranks(config: RunConfig, corpus: Corpus) -> Tensor | None:
    """Return the words' ranks by frequency in the train split alone, where the decoder needs them."""
    return None if config.model.decoder == "full" else ranks_of(corpus.train.tokens, len(corpus.vocabulary))


def _name_states(name: str, states: States) -> dict[str, Tensor]:
    return {f"{name}.{i}.{j}": tensor for i, pair in enumerate(states) for j, tensor in enumerate(pair)}


def _read_states(name: str, tensors: dict[str, Tensor]) -> States:
    count = sum(key.startswith(f"{name}.") for key in tensors) // 2
    return [(tensors[f"{name}.{i}.0"], tensors[f"{name}.{i}.1"]) for i in range(count)]


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}

"""The settings of one training run: frozen, complete and valid once built."""

import hashlib
import itertools
import json
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any

from lmsearch.clusters import Clusters, cut
from lmsearch.errors import ConfigError
from lmsearch.formats import FIRST
from lmsearch.setting import Setting, check_settings, setting, setting_of

Value = bool | int | float | str

MOST_TRIALS = 1_000_000
"""The most trials of a study; other counts on a command line have the same limit."""

# No machine could do more; a number beyond is a slip of the keyboard, and is reported before anything is built of it.
_MOST_UNITS, _MOST_LAYERS, _MOST_EPOCHS, _MOST_THREADS = 1 << 20, 1_000, 1_000_000, 4_096

CELLS = ("lstm", "mogrifier")
DECODERS = ("full", "adaptive")
SCHEDULES = ("plateau", "cosine")
OPTIMIZERS = ("adam", "adamw", "sgd", "nt-asgd")
BUILT_IN_CORPORA = ("python-docs", "wikitext-2", "penn-treebank")
NORMALIZERS = ("none", "basic", "tutorial")
ARTICLES = ("none", "headings")
DEVICES = ("cpu", "cuda", "cuda:0", "cuda:1", "auto")
"""How devices are named, by example."""


_SAME_TEXT = "all trials of a study must read the same text"
_NOT_COMPARABLE = "perplexities of trials that differ in it could not be compared"


def _share(says: str) -> Any:
    return setting(0.0, says, low=0, below=1)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which text, and which of its words the model knows."""

    corpus: str = setting(
        MISSING,
        "`python-docs`, `wikitext-2`, `penn-treebank`, or a folder or file relative to this file",
        closed=_SAME_TEXT,
    )
    min_count: int | None = setting(
        None,
        "rarer words of the train split become `<unk>`; by default 2, or 1 if the train split has `<unk>` itself",
        low=1,
        closed=_SAME_TEXT,
    )
    max_vocabulary: int = setting(
        0, "the most words, of which the most frequent are kept; 0: no limit", low=0, closed=_SAME_TEXT
    )
    vocabulary: str | None = setting(
        None,
        "file of the words that the model knows, one a line, from the corpus's folder; the others become `<unk>`",
        closed=_SAME_TEXT,
    )
    split: tuple[float, ...] = setting(
        (0.8, 0.1, 0.1), "shares of train, valid and test if the corpus is one file", closed=_SAME_TEXT
    )
    normalize: str = setting("none", "how words are rewritten", choices=NORMALIZERS, closed=_SAME_TEXT)
    articles: str = setting(
        "none", "`headings`: articles start at WikiText's headings", choices=ARTICLES, closed=_SAME_TEXT
    )
    shuffle_articles: bool | None = setting(
        None,
        "whether articles are shuffled each epoch; by default true for `python-docs` and arrays",
        closed=_SAME_TEXT,
    )

    def __post_init__(self) -> None:
        if not self.corpus:
            raise ConfigError("data.corpus is empty; name a built-in corpus, a folder or a file")
        check_settings("data", self)
        if self.vocabulary is not None and (self.min_count is not None or self.max_vocabulary):
            raise ConfigError("data.vocabulary names the words: leave data.min_count and data.max_vocabulary out")
        if 0 < self.max_vocabulary < 3:
            raise ConfigError(
                "data.max_vocabulary counts <unk> and <eos> too: it must be at least 3, or 0 for no limit"
            )
        shares = self.split
        if len(shares) != 3 or min(shares) < 0 or 0 in shares[:2] or abs(sum(shares) - 1) > 1e-6:
            raise ConfigError(
                f"data.split must be the shares of train, valid and test, such as [0.8, 0.1, 0.1], which add up to 1 "
                f"and of which only test's may be 0; got {list(shares)}"
            )


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The LSTM language model: its sizes and its dropout, as shares of values that are dropped."""

    embedding_size: int = setting(400, "width of the word embedding", low=1, high=_MOST_UNITS, cost=True)
    hidden_size: int = setting(1150, "width of the LSTM layers", low=1, high=_MOST_UNITS, cost=True)
    num_layers: int = setting(3, "number of LSTM layers", low=1, high=_MOST_LAYERS, cost=True)
    tie_weights: bool = setting(True, "whether embedding and decoder share one matrix", cost=True)
    embedding_dropout: float = _share("share of words whose embedding is dropped")
    input_dropout: float = _share("dropout between embedding and first layer")
    hidden_dropout: float = _share("dropout between layers")
    output_dropout: float = _share("dropout after the last layer")
    locked_dropout: bool = setting(True, "whether one dropout mask holds for a whole window")
    weight_dropout: float = _share("dropout of the hidden-to-hidden weights")
    state_dropout: float = _share("dropout of the hidden state between time steps; steps are then taken one by one")
    init_range: float = setting(0.1, "embedding and decoder start uniform in ± this", above=0)
    reset_states: bool = setting(
        False,
        "whether each line is read from a state of zeros, so that lines are independent; steps are taken one by one",
    )
    cell: str = setting(
        "lstm",
        "`lstm`, or `mogrifier`: input and state gate each other before each step, which is slower",
        choices=CELLS,
        cost=True,
    )
    mogrifier_rounds: int = setting(5, "`mogrifier`: gatings before each step", low=1, high=100, cost=True)
    mogrifier_rank: int = setting(
        40, "`mogrifier`: rank of the gates' matrices; 0: full matrices", low=0, high=_MOST_UNITS, cost=True
    )
    decoder: str = setting(
        "full",
        "`full`: a softmax over all words; `adaptive`: exact probabilities too, several times as fast with many words",
        choices=DECODERS,
        cost=True,
        closed="an epoch costs a multiple with the one of what it costs with the other",
    )
    cutoffs: tuple[int, ...] | None = setting(
        None,
        "`adaptive`: ranks by frequency at which tails begin, such as `[1000, 4000]`; by default for the fewest logits",
        closed=_NOT_COMPARABLE,
    )

    def __post_init__(self) -> None:
        check_settings("model", self)
        if self.cutoffs is None:
            return
        if self.decoder != "adaptive":
            raise ConfigError(f"model.cutoffs cut an adaptive decoder; model.decoder is {self.decoder}")
        if not self.cutoffs or self.cutoffs[0] < 1 or any(a >= b for a, b in itertools.pairwise(self.cutoffs)):
            raise ConfigError(
                f"model.cutoffs must be growing whole numbers from 1, such as [1000, 4000], got {list(self.cutoffs)}"
            )

    def layer_sizes(self) -> list[tuple[int, int]]:
        """List (input size, output size) of each LSTM layer; a tied model ends as wide as its embedding."""
        last = self.embedding_size if self.tie_weights else self.hidden_size
        sizes = [self.embedding_size, *[self.hidden_size] * (self.num_layers - 1), last]
        return list(itertools.pairwise(sizes))

    def count_parameters(self, vocabulary_size: int) -> int:
        """Return the number of parameters of the model over a vocabulary of that many words."""
        layers = self.layer_sizes()
        features = layers[-1][1]
        lstm = sum(4 * size * (inputs + size) + 8 * size for inputs, size in layers)
        if self.cell == "mogrifier":
            rank = self.mogrifier_rank
            lstm += self.mogrifier_rounds * sum(rank * (m + n) if rank else m * n for m, n in layers)
        decoder = 0 if self.tie_weights else vocabulary_size * features
        if self.decoder == "adaptive":
            clusters = self.clusters(vocabulary_size)
            decoder = clusters.tails * (features + 1) + sum(width * features for width in clusters.widths)
            if not self.tie_weights:
                decoder += clusters.shortlist * features
                for number, width in enumerate(clusters.widths):
                    first, end = clusters.tail(number)
                    decoder += (end - first) * width
        return vocabulary_size * self.embedding_size + lstm + decoder + vocabulary_size

    def clusters(self, vocabulary_size: int) -> Clusters:
        """Return how an adaptive decoder cuts the vocabulary. Raises `ConfigError` where it is too small for that."""
        return cut(vocabulary_size, self.layer_sizes()[-1][1], self.tie_weights, self.cutoffs)

    def check_vocabulary(self, vocabulary_size: int) -> None:
        """Raise `ConfigError` where the decoder is for a larger vocabulary."""
        if self.decoder == "adaptive":
            self.clusters(vocabulary_size)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How the model is trained. Learning rates and decays are those of the optimizer named."""

    optimizer: str = setting("adam", "optimizer", choices=OPTIMIZERS, cost=True)
    learning_rate: float = setting(0.002, "learning rate at the start", above=0)
    weight_decay: float = setting(0.0, "weight decay", low=0)
    clip_norm: float = setting(0.25, "largest norm of the gradients; 0: they are not clipped", low=0)
    batch_size: int = setting(20, "columns that are trained at once", low=1, cost=True)
    # Two tokens a window are the least that a difference in time can be taken over.
    bptt: int = setting(35, "tokens of a window of backpropagation through time", low=2, high=1 << 20, cost=True)
    variable_bptt: bool = setting(False, "whether the length of a window is drawn")
    activation_reg: float = setting(0.0, "activation regularisation (AR)", low=0)
    temporal_activation_reg: float = setting(0.0, "temporal activation regularisation (TAR)", low=0)
    anneal_factor: float = setting(
        1.0, "what the learning rate is divided by after `anneal_patience` epochs; 1: it stays", low=1
    )
    anneal_patience: int = setting(1, "epochs without a new best before the learning rate is divided", low=1)
    schedule: str = setting(
        "plateau",
        "`plateau`: the rate is divided by `anneal_factor`; `cosine`: it falls along a cosine, to 0 at the last step",
        choices=SCHEDULES,
    )
    warmup_epochs: float = setting(0.0, "epochs over which the learning rate rises to its value, from 0", low=0)
    ema: float = setting(
        0.0,
        "decay of an exponential moving average of the weights, which is then the model evaluated and kept; 0: none",
        low=0,
        below=1,
    )
    nonmono: int = setting(5, "epochs without a new best before `nt-asgd` starts to average", low=1)
    finetune: bool = setting(
        False,
        "`nt-asgd`: a second stage from the averages until its own trigger fires, for at most as many epochs",
    )
    epochs: int = setting(40, "epochs of a trial", low=1, high=_MOST_EPOCHS, closed=_NOT_COMPARABLE)
    patience: int = setting(0, "epochs without a new best before a trial stops; 0: it never does", low=0)
    seed: int = setting(1, "seed of the initial weights and of dropout", low=0)
    threads: int = setting(
        1,
        "threads of PyTorch on a CPU",
        low=1,
        high=_MOST_THREADS,
        closed="sums are formed in another order, so equal trials would differ",
    )
    eval_batch_size: int = setting(
        10, "columns of an evaluation, fewer for a short text", low=1, closed=_NOT_COMPARABLE
    )
    eval_context: int = setting(
        200,
        "tokens that a column of an evaluation reads before its own, so that the perplexity is that of one column",
        low=0,
        closed=_NOT_COMPARABLE,
    )

    def __post_init__(self) -> None:
        check_settings("train", self)
        if self.finetune and self.optimizer != "nt-asgd":
            raise ConfigError(f"train.finetune continues from the averages of nt-asgd; {self.optimizer} has none")
        if self.optimizer == "nt-asgd" and (self.ema or self.schedule == "cosine"):
            name = "train.ema" if self.ema else 'train.schedule = "cosine"'
            raise ConfigError(f"{name} does not go with nt-asgd, which averages the weights itself, at one rate")


def paths_of(tables: Mapping[str, Mapping[str, Value]]) -> dict[str, Value]:
    """Return the values of a config's tables by dotted path."""
    return {f"{section}.{name}": value for section, table in tables.items() for name, value in table.items()}


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """All that decides what one training run computes."""

    data: DataConfig
    model: ModelConfig
    train: TrainConfig

    def as_tables(self) -> dict[str, dict[str, Value]]:
        """Return the config as plain tables, as study files have them; only what the corpus decides is left out."""
        tables: dict[str, dict[str, Value]] = asdict(self)
        return {
            section: {name: value for name, value in table.items() if value is not None}
            for section, table in tables.items()
        }

    def by_path(self) -> dict[str, Value]:
        """Return all values by dotted path; only what the corpus decides is left out."""
        return paths_of(self.as_tables())

    def digest(self, fingerprint: str) -> str:
        """Return 64 hexadecimal digits for what is computed: all settings, and the text by its fingerprint.

        Where the text lies does not count. A setting counts only where it is not what lmsearch 0.1.0 did without
        it, so that the digest stays when settings are added and defaults change.
        """
        before = defaults_of(FIRST)
        counted = {
            path: value for path, value in self.by_path().items() if path != "data.corpus" and value != before.get(path)
        }
        text = json.dumps([fingerprint, sorted(counted.items())])
        return hashlib.sha256(text.encode()).hexdigest()

    @classmethod
    def from_paths(cls, values: dict[str, Value]) -> "RunConfig":
        """Build a config from values by dotted path; raises `ConfigError` where one is not valid."""
        tables: dict[str, dict[str, Value]] = {section: {} for section in SECTIONS}
        for path, value in values.items():
            section, _, name = path.partition(".")
            tables[section][name] = coerce(path, value)
        for path in REQUIRED:
            if path not in values:
                raise ConfigError(f"{path} is missing")
        built: dict[str, Any] = {name: SECTIONS[name](**table) for name, table in tables.items()}
        return cls(**built)


@dataclass(frozen=True, kw_only=True)
class EarlierDefault:
    """What a setting was where a file of an earlier lmsearch does not give it."""

    before: str  # the version from which on it is another
    value: Value


EARLIER_DEFAULTS: dict[str, tuple[EarlierDefault, ...]] = {
    "data.min_count": (EarlierDefault(before="0.3.0", value=1),),
    "train.eval_context": (EarlierDefault(before="0.3.0", value=0),),
}
"""Defaults that have changed, and settings that were added whose default is not what lmsearch did before, oldest first.

A study that was started, or a config that was written, by an earlier version keeps to them.
"""


def defaults_of(version: str) -> dict[str, Value]:
    """Return what each setting is where a file of that lmsearch version does not give it, by dotted path."""
    return _defaults() | earlier_defaults(version)


def _defaults() -> dict[str, Value]:
    return {
        f"{section}.{field.name}": field.default
        for section, owner in SECTIONS.items()
        for field in fields(owner)
        if field.default is not MISSING
    }


def earlier_defaults(version: str) -> dict[str, Value]:
    """Return the defaults of an earlier version that are others today, by dotted path."""
    found: dict[str, Value] = {}
    for path, changes in EARLIER_DEFAULTS.items():
        for change in changes:
            if is_earlier(version, change.before):
                found[path] = change.value
                break
    return found


def is_earlier(version: str, than: str) -> bool:
    """Whether an lmsearch version came before another one."""
    return _ordered(version) < _ordered(than)


def _ordered(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])


SECTIONS: dict[str, Any] = {"data": DataConfig, "model": ModelConfig, "train": TrainConfig}
REQUIRED = ("data.corpus",)


def _field_types() -> dict[str, type]:
    found: dict[str, type] = {}
    for section, owner in SECTIONS.items():
        hints = typing.get_type_hints(owner)
        for field in fields(owner):
            hint = hints[field.name]
            if isinstance(hint, types.UnionType):
                hint = next(part for part in typing.get_args(hint) if part is not type(None))
            found[f"{section}.{field.name}"] = hint
    return found


SETTINGS: dict[str, Setting] = {
    f"{section}.{one.name}": setting_of(one) for section, owner in SECTIONS.items() for one in fields(owner)
}
"""Every setting by its dotted path, with its bounds, its sentence and its cost."""

FIELD_TYPES: dict[str, type] = _field_types()
"""Every setting by its dotted path, with its type, in the order of this file."""

_TOO_LARGE = 1 << 63  # what neither a seed nor a size can be
_NUMBERS: typing.Any = tuple[float, ...]
_WHOLES: typing.Any = tuple[int, ...]
_TYPE_WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    _NUMBERS: "a list of numbers",
    _WHOLES: "a list of whole numbers",
}


def coerce(path: str, value: object) -> Value:
    """Convert `value` to the type of the setting at `path`; the setting's type rules, not how a number is written."""
    wanted = FIELD_TYPES[path]
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else None
    if number is not None and abs(number) < _TOO_LARGE:
        if wanted is float:
            return float(number)
        if wanted is int and number == int(number):
            return int(number)
    if wanted in (bool, str) and isinstance(value, wanted):
        return typing.cast(Value, value)
    if wanted in (_NUMBERS, _WHOLES) and isinstance(value, list | tuple):
        # Settings that are lists are never open, so what handles open values never sees them.
        numbers = tuple(_number(path, part, wanted) for part in value)
        return typing.cast(Value, tuple(map(int, numbers)) if wanted == _WHOLES else numbers)
    large = ", below 2^63" if number is not None and abs(number) >= _TOO_LARGE else ""
    raise ConfigError(f"{path} must be {_TYPE_WORDS[wanted]}{large}, got {value!r}")


def _number(path: str, value: object, wanted: typing.Any) -> float:
    if (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and abs(value) < _TOO_LARGE
        and (wanted == _NUMBERS or value == int(value))
    ):
        return float(value)
    raise ConfigError(f"{path} must be {_TYPE_WORDS[wanted]}, got {value!r} in it")


def parse_budget(text: str) -> int:
    """Read a number of parameters such as `24M`, `300k` or `1_500_000`."""
    match = re.fullmatch(r"([0-9][0-9_]*(?:\.[0-9]+)?)\s*([kKmMgG]?)", text.strip())
    if match is None:
        raise ConfigError(f'model.parameters must be a number such as "24M" or "300k", got {text!r}')
    factor = {"": 1, "k": 1_000, "m": 1_000_000, "g": 1_000_000_000}[match[2].lower()]
    return round(float(match[1].replace("_", "")) * factor)

"""The settings of one training run: frozen, complete and valid once built."""

import hashlib
import itertools
import json
import re
import types
import typing
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any

from lmsearch.errors import ConfigError
from lmsearch.formats import FIRST

Value = bool | int | float | str

MOST_TRIALS = 1_000_000
"""The most trials of a study; other counts on a command line have the same limit."""

# No machine could do more; a number beyond is a slip of the keyboard, and is told of before anything is built of it.
_MOST_UNITS, _MOST_LAYERS, _MOST_EPOCHS, _MOST_THREADS = 1 << 20, 1_000, 1_000_000, 4_096

OPTIMIZERS = ("adam", "adamw", "sgd", "nt-asgd")
BUILT_IN_CORPORA = ("python-docs", "wikitext-2", "penn-treebank")
NORMALIZERS = ("none", "basic", "tutorial")
ARTICLES = ("none", "headings")
DEVICES = ("cpu", "cuda", "cuda:0", "cuda:1", "auto")
"""How devices are named, by example."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which text, and which of its words the model knows."""

    corpus: str
    min_count: int | None = None  # rarer words of the train split become <unk>; None: 1 where it has <unk>, else 2
    max_vocabulary: int = 0  # 0: every word that is frequent enough
    split: tuple[float, ...] = (0.8, 0.1, 0.1)  # shares of train, valid and test where the corpus is one file
    normalize: str = "none"
    articles: str = "none"  # headings: they begin where WikiText's headings stand
    shuffle_articles: bool | None = None  # None: as the corpus is meant, true for python-docs and arrays

    def __post_init__(self) -> None:
        if not self.corpus:
            raise ConfigError("data.corpus is empty; name a built-in corpus, a folder or a file")
        if self.min_count is not None:
            _at_least("data.min_count", self.min_count, 1)
        _at_least("data.max_vocabulary", self.max_vocabulary, 0)
        if 0 < self.max_vocabulary < 3:
            raise ConfigError(
                "data.max_vocabulary counts <unk> and <eos> too: it must be at least 3, or 0 for no limit"
            )
        _one_of("data.normalize", self.normalize, NORMALIZERS)
        _one_of("data.articles", self.articles, ARTICLES)
        shares = self.split
        if len(shares) != 3 or min(shares) < 0 or 0 in shares[:2] or abs(sum(shares) - 1) > 1e-6:
            raise ConfigError(
                f"data.split must be the shares of train, valid and test, such as [0.8, 0.1, 0.1], which add up to 1 "
                f"and of which only test's may be 0; got {list(shares)}"
            )


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The LSTM language model: its sizes and its dropout, as shares of values that are dropped."""

    embedding_size: int = 400
    hidden_size: int = 1150
    num_layers: int = 3
    tie_weights: bool = True
    embedding_dropout: float = 0.0
    input_dropout: float = 0.0
    hidden_dropout: float = 0.0
    output_dropout: float = 0.0
    locked_dropout: bool = True
    weight_dropout: float = 0.0
    init_range: float = 0.1

    def __post_init__(self) -> None:
        for name, most in (("embedding_size", _MOST_UNITS), ("hidden_size", _MOST_UNITS), ("num_layers", _MOST_LAYERS)):
            _at_least(f"model.{name}", getattr(self, name), 1)
            _at_most(f"model.{name}", getattr(self, name), most)
        for name in ("embedding", "input", "hidden", "output", "weight"):
            share = getattr(self, f"{name}_dropout")
            if not 0 <= share < 1:
                raise ConfigError(f"model.{name}_dropout must be at least 0 and below 1, got {share}")
        _positive("model.init_range", self.init_range)

    def layer_sizes(self) -> list[tuple[int, int]]:
        """List (input size, output size) of each LSTM layer; a tied model ends as wide as its embedding."""
        last = self.embedding_size if self.tie_weights else self.hidden_size
        sizes = [self.embedding_size, *[self.hidden_size] * (self.num_layers - 1), last]
        return list(itertools.pairwise(sizes))

    def count_parameters(self, vocabulary_size: int) -> int:
        """Count the trainable numbers of the model over a vocabulary of that many words."""
        layers = self.layer_sizes()
        lstm = sum(4 * size * (inputs + size) + 8 * size for inputs, size in layers)
        decoder = 0 if self.tie_weights else vocabulary_size * layers[-1][1]
        return vocabulary_size * self.embedding_size + lstm + decoder + vocabulary_size


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How the model is trained. Learning rates and decays are those of the optimizer named."""

    optimizer: str = "adam"
    learning_rate: float = 0.002
    weight_decay: float = 0.0
    clip_norm: float = 0.25  # 0: gradients are not clipped
    batch_size: int = 20
    bptt: int = 35
    variable_bptt: bool = False
    activation_reg: float = 0.0
    temporal_activation_reg: float = 0.0
    anneal_factor: float = 1.0  # 1: the learning rate is never divided
    anneal_patience: int = 1  # epochs
    nonmono: int = 5  # epochs, for nt-asgd
    finetune: bool = False  # for nt-asgd: a second stage from the averages, until its own trigger
    epochs: int = 40
    patience: int = 0  # epochs; 0: never stop early
    seed: int = 1
    threads: int = 1
    eval_batch_size: int = 10
    eval_context: int = 200  # tokens that each column of an evaluation reads before its own; 0: it begins with none

    def __post_init__(self) -> None:
        _one_of("train.optimizer", self.optimizer, OPTIMIZERS)
        if self.finetune and self.optimizer != "nt-asgd":
            raise ConfigError(f"train.finetune continues from the averages of nt-asgd; {self.optimizer} has none")
        _positive("train.learning_rate", self.learning_rate)
        for name in ("weight_decay", "clip_norm", "activation_reg", "temporal_activation_reg"):
            _at_least(f"train.{name}", getattr(self, name), 0)
        _at_least("train.anneal_factor", self.anneal_factor, 1)
        # Two tokens a window are the least that a difference in time can be taken over.
        _at_least("train.bptt", self.bptt, 2)
        for name in ("batch_size", "anneal_patience", "nonmono", "epochs", "threads", "eval_batch_size"):
            _at_least(f"train.{name}", getattr(self, name), 1)
        for name, most in (("epochs", _MOST_EPOCHS), ("threads", _MOST_THREADS), ("bptt", 1 << 20)):
            _at_most(f"train.{name}", getattr(self, name), most)
        for name in ("patience", "seed", "eval_context"):
            _at_least(f"train.{name}", getattr(self, name), 0)


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

    def digest(self, fingerprint: str) -> str:
        """Return 64 hexadecimal digits for what is computed: all settings, and the text by its fingerprint.

        Where the text lies does not count. A setting counts only where it is not what lmsearch 0.1.0 did without
        it, so that the digest stays when settings are added and defaults change.
        """
        before = defaults_of(FIRST)
        counted = {
            path: value
            for section, table in self.as_tables().items()
            for name, value in table.items()
            if (path := f"{section}.{name}") != "data.corpus" and value != before.get(path)
        }
        told = json.dumps([fingerprint, sorted(counted.items())])
        return hashlib.sha256(told.encode()).hexdigest()

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
            if _ordered(version) < _ordered(change.before):
                found[path] = change.value
                break
    return found


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


FIELD_TYPES: dict[str, type] = _field_types()
"""Every setting by its dotted path, with its type, in the order of this file."""

_TOO_LARGE = 1 << 63  # what neither a seed nor a size can be
_NUMBERS: typing.Any = tuple[float, ...]
_TYPE_WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    _NUMBERS: "a list of numbers",
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
    if wanted == _NUMBERS and isinstance(value, list | tuple):
        # The one setting that is a list; it is never open, so what handles open values never sees it.
        return typing.cast(Value, tuple(_number(path, part) for part in value))
    large = ", below 2^63" if number is not None and abs(number) >= _TOO_LARGE else ""
    raise ConfigError(f"{path} must be {_TYPE_WORDS[wanted]}{large}, got {value!r}")


def _number(path: str, value: object) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _TOO_LARGE:
        return float(value)
    raise ConfigError(f"{path} must be {_TYPE_WORDS[_NUMBERS]}, got {value!r} in it")


def parse_budget(text: str) -> int:
    """Read a number of parameters such as `24M`, `300k` or `1_500_000`."""
    match = re.fullmatch(r"([0-9][0-9_]*(?:\.[0-9]+)?)\s*([kKmMgG]?)", text.strip())
    if match is None:
        raise ConfigError(f'model.parameters must be a number such as "24M" or "300k", got {text!r}')
    factor = {"": 1, "k": 1_000, "m": 1_000_000, "g": 1_000_000_000}[match[2].lower()]
    return round(float(match[1].replace("_", "")) * factor)


def _one_of(path: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ConfigError(f"{path} {value!r} is not known; there are: {', '.join(known)}")


def _at_least(path: str, value: float, low: float) -> None:
    if value < low:
        raise ConfigError(f"{path} must be at least {low}, got {value}")


def _at_most(path: str, value: float, high: float) -> None:
    if value > high:
        raise ConfigError(f"{path} must be at most {high:,}, got {value:,}")


def _positive(path: str, value: float) -> None:
    if value <= 0:
        raise ConfigError(f"{path} must be above 0, got {value}")

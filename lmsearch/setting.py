"""What is known of one setting: its bounds, its sentence, whether it costs, whether a study may leave it open."""

from dataclasses import Field, dataclass, field, fields
from typing import Any

from lmsearch.errors import ConfigError

_KEY = "setting"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What stands beside a setting's type and default. The checks, the JSON schema and the documentation use it."""

    says: str  # what it is, for the table of docs/study-files.md
    low: float | None = None  # the least value
    above: float | None = None  # or: every value is above it
    high: float | None = None  # the most
    below: float | None = None  # or: every value is below it
    choices: tuple[str, ...] = ()
    cost: bool = False  # the time or the memory of a step depends on it, so `plan` measures it
    closed: str = ""  # why a study may not leave it open; "": it may

    def check(self, path: str, value: Any) -> None:
        """Raise `ConfigError` for a value outside the bounds; None is for what the corpus decides."""
        if value is None:
            return
        if self.choices and value not in self.choices:
            raise ConfigError(f"{path} {value!r} is not known; there are: {', '.join(self.choices)}")
        if self.low is not None and self.below is not None and not self.low <= value < self.below:
            raise ConfigError(f"{path} must be at least {self.low} and below {self.below}, got {value}")
        if self.low is not None and value < self.low:
            raise ConfigError(f"{path} must be at least {self.low}, got {value}")
        if self.above is not None and value <= self.above:
            raise ConfigError(f"{path} must be above {self.above}, got {value}")
        if self.high is not None and value > self.high:
            raise ConfigError(f"{path} must be at most {self.high:,}, got {value:,}")


def setting(default: Any, says: str, **known: Any) -> Any:
    """Make the field of a config's dataclass: its default, its sentence, and what else is known of it."""
    return field(default=default, metadata={_KEY: Setting(says=says, **known)})


def setting_of(one: "Field[Any]") -> Setting:
    """Return what is known of a field."""
    found: Setting = one.metadata[_KEY]
    return found


def check_settings(section: str, config: Any) -> None:
    """Check each value of a config against what is known of its setting. Raises `ConfigError`."""
    for one in fields(config):
        setting_of(one).check(f"{section}.{one.name}", getattr(config, one.name))

"""What can go wrong because of the input or the environment, each error with one sentence for a person."""


class LmsearchError(Exception):
    """An error that a person can act on; the command prints it without a traceback."""

    exit_code = 2


class ConfigError(LmsearchError):
    """A study file, a config or a value in it is not valid."""


class CorpusError(LmsearchError):
    """A text cannot be read, or is not the text that a study was started with."""


class StoreError(LmsearchError):
    """The study store cannot be used as it was named."""


class StudyError(LmsearchError):
    """A study does not exist, or is not what the command expects."""


class NothingToShowError(StudyError):
    """The study has not, or not yet, what a figure shows."""


class DeviceError(LmsearchError):
    """A device that was asked for is not there."""


class StoreGoneError(LmsearchError):
    """The store has not answered for as long as the caller was willing to wait."""

    exit_code = 75


class ResultsError(LmsearchError):
    """The results cannot be written now; they can be made from the store again."""

    exit_code = 75


class SearchFailedError(LmsearchError):
    """The search stopped, or ended, without a trial that ended well."""

    exit_code = 1


STALLED = 70
"""The exit code of a worker that ended itself since its trial made no step."""

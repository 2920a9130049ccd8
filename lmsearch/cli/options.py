"""Options that several commands share, and words that several print."""

import math
import os
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.shell_completion import CompletionItem

from lmsearch.config import MOST_TRIALS
from lmsearch.errors import ConfigError
from lmsearch.folders import DEFAULT_STORE
from lmsearch.search.placement import KINDS, RESOURCES, Placement, Resources, read_placement
from lmsearch.search.work import LEASE_SECONDS, STALL_SECONDS, STORE_SECONDS, WorkOptions
from lmsearch.store.artifacts import ARTIFACTS, Artifacts
from lmsearch.study.options import PRUNER_OPTIONS, SAMPLER_OPTIONS
from lmsearch.terminal.output import say

if TYPE_CHECKING:
    from sqlalchemy.engine import URL

    from lmsearch.store.storage import FencedStorage

F = TypeVar("F", bound=Callable[..., Any])

_WITHOUT_STORE = ("train",)  # commands that take no --storage


class Number(click.ParamType["float"]):
    """A finite number, perhaps above one bound and up to another; NaN would pass every comparison."""

    name = "number"

    def __init__(self, above: float = -math.inf, most: float = math.inf) -> None:
        self.above, self.most = above, most

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Read a number, or fail with what is allowed."""
        try:
            number = float(value)
        except ValueError:
            self.fail(f"{value!r} is not a number.", param, ctx)
        if not math.isfinite(number) or not self.above < number <= self.most:
            low = f" above {self.above:g}" if self.above > -math.inf else ""
            high = f" and at most {self.most:g}" if self.most < math.inf else ""
            self.fail(f"{value} is not a finite number{low}{high}.", param, ctx)
        return number


_DURATION = re.compile("".join(rf"(?:(\d+(?:\.\d+)?){unit})?" for unit in "dhms"))

NUMBER = Number()
COUNT = click.IntRange(1, MOST_TRIALS)
SEED = click.IntRange(0, (1 << 63) - 1)


def duration(context: click.Context, parameter: click.Parameter, value: str | None) -> float | None:
    """Read a duration such as `3h50m` or `90s`, in seconds."""
    if value is None:
        return None
    match = _DURATION.fullmatch(value.strip())
    if match is None or not value.strip():
        raise ConfigError(f"{value!r} is not a duration; write 2d12h, 3h50m, 45m or 90s")
    return sum(size * float(part or 0) for size, part in zip((86_400, 3600, 60, 1), match.groups(), strict=True))


def positive_duration(context: click.Context, parameter: click.Parameter, value: str | None) -> float | None:
    """Read a duration that is more than nothing."""
    seconds = duration(context, parameter, value)
    if seconds == 0:
        raise ConfigError(f"{value!r} is not above zero; write 10m or 90s")
    return seconds


class _StudyName(click.ParamType["str"]):
    """The name of a study in the store, which a shell can complete."""

    name = "study"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """List the studies of the store that the command line or the environment names."""
        from lmsearch.store.names import study_names

        storage = ctx.params.get("storage") or os.environ.get("LMSEARCH_STORAGE") or DEFAULT_STORE
        return [CompletionItem(name) for name in study_names(storage) if name.startswith(incomplete)]


def study_argument(name: str = "study", required: bool = True, nargs: int = 1) -> Callable[[F], F]:
    """Add an argument that is the name of a study."""
    return click.argument(name, type=_StudyName(), required=required, nargs=nargs)


def the_study(storage: "FencedStorage") -> str:
    """Return the name of the only study in a store; raises `StudyError` where there is another number of them."""
    from lmsearch.store.records import only_study

    return only_study(storage)


def study_file_argument(function: F) -> F:
    """Add the study file that a search begins with."""
    return click.argument("study_file", default="default", type=_StudyFile())(function)


class _StudyFile(click.ParamType["str"]):
    """A file, or the name of a study that lmsearch ships, or of one in the store; a shell can complete them."""

    name = "study_file"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """List the studies that lmsearch ships, and let the shell list files."""
        from lmsearch.study.shipped import shipped_studies

        found = [CompletionItem(name) for name in shipped_studies() if name.startswith(incomplete)]
        return found or [CompletionItem(incomplete, type="file")]


def open_page(url: str) -> None:
    """Open a page in a browser; where there is none, say so."""
    import webbrowser

    if not webbrowser.open(url):
        say("note: no browser could be started here; open the page yourself", err=True)


def storage_option(function: F) -> F:
    """Add --storage and --store-timeout."""
    timeout = click.option(
        "--store-timeout",
        metavar="DURATION",
        callback=duration,
        help="How long to wait for a store that does not answer, before exiting with code 75. [default: 10s; 10m for "
        "commands that run trials]",
    )
    storage = click.option(
        "--storage",
        metavar="URL",
        envvar="LMSEARCH_STORAGE",
        default=DEFAULT_STORE,
        show_default=True,
        help="URL of the store: SQLite for one host, postgresql://… for several. Also LMSEARCH_STORAGE.",
    )
    return storage(timeout(function))


def open_store(
    storage: str, store_timeout: float | None, create: bool = False, write: bool = False, connections: int = 1
) -> "FencedStorage":
    """Open the store that --storage names, waiting for it as long as --store-timeout says."""
    from lmsearch.store.opening import open_storage
    from lmsearch.store.outages import WaitUpTo

    patience = WaitUpTo(STORE_SECONDS if store_timeout is None else store_timeout)
    return open_storage(parse_storage(storage), create=create, write=write, connections=connections, patience=patience)


def json_option(function: F) -> F:
    """Add --json."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document and nothing else.")(function)


def warn_of_text(remarks: Iterable[str]) -> None:
    """Print warnings about a text."""
    for remark in remarks:
        say(f"warning: {remark}", err=True)


def parse_storage(text: str) -> "URL":
    """Read --storage."""
    from lmsearch.store.url import parse_url

    return parse_url(text)


def storage_words(url: "URL") -> list[str]:
    """Return the --storage part of a command to print: nothing for the default, and never a password."""
    from lmsearch.store import url as urls

    if url == parse_storage(DEFAULT_STORE) or urls.has_password(url):
        return []
    return ["--storage", urls.redact(url)]


def storage_hint(url: "URL") -> str:
    """Return how a printed command finds a store whose URL has a password: a comment, so that it can be pasted."""
    from lmsearch.store import url as urls

    return "  # with LMSEARCH_STORAGE set to the store's URL" if urls.has_password(url) else ""


def command_text(words: Sequence[str], url: "URL") -> str:
    """Return a command that a person can copy, with how it finds the store, where it takes one."""
    if words[1] in _WITHOUT_STORE:
        return shlex.join(words)
    return shlex.join([*words, *storage_words(url)]) + storage_hint(url)


def device_option(function: F) -> F:
    """Add --device, of one training."""
    return click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1, or auto.")(function)


def workers_option(function: F) -> F:
    """Add --workers and --device, of several trainings at once."""
    help_text = "cpu, cuda (all GPUs in turn), cuda:1 or auto."
    device = click.option("--device", default="auto", show_default=True, help=help_text)
    help_text = "Number of worker processes. [default: one per GPU, otherwise one per CPU]"
    return click.option("-j", "--workers", type=COUNT, help=help_text)(device(function))


def quiet_option(function: F) -> F:
    """Add --quiet."""
    return click.option("-q", "--quiet", is_flag=True, help="Print only the result.")(function)


def time_limit_option(function: F) -> F:
    """Add --time-limit, and refuse the options that it replaced."""
    option = click.option(
        "--time-limit",
        metavar="DURATION",
        callback=positive_duration,
        help="Stop after this long, such as 3h50m; running trials are saved.",
    )
    return option(_replaced("--hours", lambda hours: f"--time-limit {hours}h")(_replaced("--until", _same)(function)))


def _same(until: str) -> str:
    return f"--time-limit {until}"


def _replaced(old: str, new: Callable[[str], str]) -> Callable[[F], F]:
    """Add an option that is no more, and is refused with the one that took its place."""

    def refuse(context: click.Context, parameter: click.Parameter, value: str | None) -> None:
        if value is not None:
            raise ConfigError(f"{old} is now: {new(value)}")

    return click.option(old, hidden=True, expose_value=False, callback=refuse)


def launcher_options(function: F) -> F:
    """Add the options about where workers run."""
    options = (
        click.option(
            "--launcher",
            metavar="NAME",
            default="local",
            help=f"What places the workers: {_listed(KINDS)}, or a file of yours that describes a cluster "
            "(my-cluster.toml). [default: local]",
        ),
        resource_options,
        click.option(
            "--launcher-option",
            "launcher_option",
            multiple=True,
            metavar="NAME=VALUE",
            help="An option of the engine, such as partition=gpu. May be repeated.",
        ),
        click.option("--detach", is_flag=True, help="Leave the workers of a cluster at work, and return."),
    )
    for option in reversed(options):
        function = option(function)
    return function


def resource_options(function: F) -> F:
    """Add the options about what each worker of a cluster gets."""
    gpus = click.option("--gpus-per-worker", type=Number(above=-1e-9), metavar="0.5", help="GPUs of each worker.")
    cpus = click.option("--cpus-per-worker", type=COUNT, metavar="N", help="Processors of each worker.")
    memory = click.option("--memory-per-worker", metavar="8G", help="Memory of each worker.")
    return gpus(cpus(memory(function)))


def resources_of(options: Mapping[str, Any]) -> Resources:
    """Return what `resource_options` gave."""
    return Resources(**{name: options[f"{name}_per_worker"] for name in RESOURCES})


def placement_of(options: Mapping[str, Any]) -> Placement:
    """Return what `launcher_options` gave."""
    return read_placement(options["launcher"], resources_of(options), options["launcher_option"], options["detach"])


def sampler_option(function: F) -> F:
    """Add --sampler."""
    told = f"{_listed(SAMPLER_OPTIONS)}, instead of the file's."
    return click.option("--sampler", metavar="NAME", help=told, shell_complete=_completing(SAMPLER_OPTIONS))(function)


def pruner_option(function: F) -> F:
    """Add --pruner."""
    told = f"{_listed(PRUNER_OPTIONS)}, instead of the file's."
    return click.option("--pruner", metavar="NAME", help=told, shell_complete=_completing(PRUNER_OPTIONS))(function)


def _completing(names: Iterable[str]) -> Callable[[click.Context, click.Parameter, str], list[CompletionItem]]:
    known = list(names)
    return lambda context, parameter, incomplete: [
        CompletionItem(name) for name in known if name.startswith(incomplete)
    ]


def _listed(names: Iterable[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} or {last}"


def pickle_option(function: F) -> F:
    """Add --allow-pickle."""
    help_text = (
        "Read a corpus of object arrays. They can run code, so only if you trust them. See: lmsearch data convert"
    )
    return click.option("--allow-pickle", is_flag=True, help=help_text)(function)


def artifacts_option(function: F) -> F:
    """Add --artifacts, and refuse the option that it replaced, which took folders alone."""
    option = click.option(
        "--artifacts",
        metavar="URL",
        envvar=ARTIFACTS,
        callback=_artifacts,
        help="Where hosts share checkpoints, weights, results and encoded texts: a folder, or s3://BUCKET/FOLDER. A "
        f"trial can then resume on any host. Also {ARTIFACTS}. [default: runs/STUDY, on this host alone]",
    )
    return option(_replaced("--checkpoints", lambda url: f"--artifacts {shlex.quote(url)}")(function))


def _artifacts(context: click.Context, parameter: click.Parameter, value: str | None) -> Artifacts | None:
    return None if value is None else Artifacts.parse(value)


def work_options(function: F) -> F:
    """Add the options of `run` and `worker` about shared files, stalls and failures."""
    options = (
        click.option(
            "--stall",
            metavar="DURATION",
            default=f"{STALL_SECONDS:.0f}s",
            callback=positive_duration,
            help="Kill a worker that makes no progress for this long; its stack trace is in its log. [default: 10m]",
        ),
        click.option(
            "--max-failures",
            type=COUNT,
            help="Stop after this many trials in a row failed in the same way, instead of the file's number.",
        ),
        click.option(
            "--idle",
            metavar="DURATION",
            callback=positive_duration,
            help="Let a worker leave once it has found no trial to run for this long; it is started again when there "
            "are trials for it.",
        ),
        pickle_option,
        click.option("--lease-seconds", type=Number(above=0), default=LEASE_SECONDS, hidden=True),
    )
    for option in options:
        function = option(function)
    return artifacts_option(function)


def work_request(options: Mapping[str, Any]) -> WorkOptions:
    """Return what `work_options` and --store-timeout gave."""
    names = ("artifacts", "store_timeout", "stall", "max_failures", "allow_pickle", "idle", "lease_seconds")
    return WorkOptions(**{name: options[name] for name in names})

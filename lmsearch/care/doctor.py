"""`lmsearch doctor`: looks at everything that a search stands on, and repairs what can be repaired without a loss."""

import shlex
import socket
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy.engine import URL

from lmsearch.care.devices import check_devices, check_versions
from lmsearch.care.disk import (
    StudyTickets,
    check_checkpoints,
    check_corpora,
    check_drafts,
    check_foreign_files,
    check_room,
    checkpoint_folders,
    folders_of_ours,
    largest_checkpoint,
)
from lmsearch.care.findings import NOTE, OK, PROBLEM, UNCHECKED, Finding, guarded, mend
from lmsearch.care.nodes import check_nodes, check_wishes
from lmsearch.care.shared import check_artifacts, check_shared
from lmsearch.errors import LmsearchError
from lmsearch.folders import MODELS
from lmsearch.formats import FORMATS, PLAIN
from lmsearch.machine import is_running
from lmsearch.search.placement import Placement
from lmsearch.spelling import count, listed, spell_seconds, spell_value
from lmsearch.store import health
from lmsearch.store import url as urls
from lmsearch.store.artifacts import Artifacts
from lmsearch.store.copies import is_copy
from lmsearch.store.opening import creating, open_storage
from lmsearch.store.outages import Patience
from lmsearch.store.records import StudyInfo, readable_studies, study_keys
from lmsearch.store.storage import FencedStorage
from lmsearch.store.tables import Ticket
from lmsearch.store.tickets import close_ended, list_tickets, present
from lmsearch.store.trials import read_study

_CLOCK_SECONDS = 5.0  # by which a host's clock may differ from the store's
_SILENT = 0.5  # of a lease's length without a heartbeat: a live holder sends one each third

_FIRST_NAMESPACE = "pid:[4026531836]"  # Linux gives it to the processes that are in no container


@dataclass(frozen=True, kw_only=True)
class Options:
    """Where to look, and whether to repair."""

    storage: URL
    patience: Patience
    runs: Path
    cache: Path
    repair: bool
    artifacts: Artifacts | None = None
    expected: bool  # the store was named, so that one that is not there is wrong
    placement: Placement = field(default_factory=Placement)  # a cluster whose nodes are checked too
    node_timeout: float = 10.0  # seconds of waiting for the store on a node
    command: Callable[[list[str]], str]  # gives a command to copy, with how it finds the store


def examine(options: Options) -> Iterator[Finding]:
    """Check everything, one finding after the other; a repair is made before its finding is yielded."""
    storage = yield from _store(options)
    if storage is None:
        for check in ("connections", "leases", "corpora"):
            yield Finding(check=check, state=UNCHECKED, text="this is not known without the store")
        yield from guarded("disk", check_room((options.runs, options.cache), 0))
        yield from guarded("disk", check_drafts(folders_of_ours(options.runs, options.cache), options.repair))
    else:
        try:
            yield from _stored(storage, options)
        finally:
            storage.engine.dispose()  # one connection more for a worker
    if options.artifacts is not None:
        yield from guarded("artifacts", check_artifacts(options.artifacts))
    devices = list(guarded("devices", check_devices()))
    yield from devices
    yield from guarded("versions", check_versions())
    yield from check_wishes(devices, has_artifacts=options.artifacts is not None)
    if options.placement.is_cluster:
        url = urls.full_text(options.storage)
        yield from check_nodes(options.placement, url, options.node_timeout, options.artifacts)


def _stored(storage: FencedStorage, options: Options) -> Iterator[Finding]:
    """Check what needs the store."""
    studies: list[StudyTickets] = []
    yield from guarded("connections", _connections(storage))
    yield from guarded("leases", _studies(storage, options, studies))
    yield from guarded("disk", _disk(storage, options, studies))
    if options.artifacts is not None:
        found = check_shared(options.artifacts, storage, options.runs, studies, options.repair)
        yield from guarded("artifacts", found)
    yield from guarded("corpora", check_corpora(options.cache, studies, options.repair, options.artifacts))


def _store(options: Options) -> Generator[Finding, None, FencedStorage | None]:
    """Open the store and try it; None where it is not to be relied on."""
    url = options.storage
    if url.get_backend_name() == "sqlite" and not Path(str(url.database)).exists():
        state = PROBLEM if options.expected else NOTE
        text = f"there is no store {url.database} yet; start a study with: lmsearch run"
        yield Finding(check="store", state=state, text=text)
        return None
    try:
        storage = open_storage(url, patience=options.patience)
        if storage.format == PLAIN:
            text = f"{urls.redact(url)} was made by Optuna alone: status, trials and report show its studies"
            yield Finding(check="store", state=NOTE, text=text)
            return None
        if storage.format < FORMATS["store"]:
            storage = yield from _older(storage, options)
        text = f"tables of Optuna's revision {health.revision(storage)}, with lmsearch's of format {storage.format}"
        text = f"{urls.redact(storage.store_url)} opens: {health.server(storage)}, {text}"
        yield Finding(check="store", state=OK, text=text)
        damage = health.damage(storage) if storage.engine.name == "sqlite" else []
        if not damage:
            yield from _tried(storage)
            return storage
        text = f"{url.database} is damaged ({damage[0]}); stop all workers, keep a copy, and save what can be read with"
        yield Finding(check="store", state=PROBLEM, text=f"{text}: {_recovery(url)}")
    except LmsearchError as error:
        hint = f"; save what can be read with: {_recovery(url)}" if "malformed" in str(error) else ""
        yield Finding(check="store", state=PROBLEM, text=f"{error}{hint}")
    return None


def _recovery(url: URL) -> str:
    return f"sqlite3 {url.database} .recover | sqlite3 recovered.db"


def _older(storage: FencedStorage, options: Options) -> Generator[Finding, None, FencedStorage]:
    """Bring a store of an earlier format to today's, as whoever opens it to write does; else look at it as it is."""
    wrong = f"the store is of format {storage.format}, which an earlier lmsearch wrote"
    remedy = f"brought to format {FORMATS['store']}"
    if not options.repair:
        yield from mend("store", False, wrong, f"{remedy}, as by the next lmsearch run", lambda: None)
        return storage
    storage.engine.dispose()
    brought = open_storage(options.storage, write=True, patience=options.patience)
    yield from mend("store", True, wrong, remedy, lambda: None)
    return brought


def _tried(storage: FencedStorage) -> Iterator[Finding]:
    text = f"it answers in {1e3 * health.round_trip(storage):.1f} ms"
    if storage.format == FORMATS["store"]:
        text += f" and writes in {1e3 * health.write_and_remove(storage):.1f} ms"
    if storage.engine.name == "sqlite":
        mode = health.journal_mode(storage)
        text += f"; its file is whole, its journal mode {mode}"
        if mode != "wal":
            text += ", which makes readers and writers wait: put it on a local disk that is no network folder"
            yield Finding(check="store", state=PROBLEM, text=text)
            return
    yield Finding(check="store", state=OK, text=text)
    if storage.engine.name == "postgresql":
        yield _clock(storage)


def _clock(storage: FencedStorage) -> Finding:
    """Compare this host's clock with the server's, which is that of leases."""
    before = time.time()
    server, _ = present(storage)
    ahead = (before + time.time()) / 2 - server
    if abs(ahead) <= _CLOCK_SECONDS:
        text = f"this host's clock is the server's to {abs(ahead):.1f} s; leases go by the server's"
        return Finding(check="leases", state=OK, text=text)
    way = "ahead of" if ahead > 0 else "behind"
    text = f"this host's clock is {spell_seconds(abs(ahead))} {way} the store's; leases go by the store's and hold, "
    text += "but times in logs are wrong, and S3 refuses requests of another time: set it, as by NTP"
    return Finding(check="leases", state=PROBLEM, text=text)


def _connections(storage: FencedStorage) -> Iterator[Finding]:
    limits = health.connection_limits(storage)
    if not limits:
        text = "SQLite has no limit: all processes of this host, and of no other, may use it"
        yield Finding(check="connections", state=OK, text=text)
        return
    least = limits[0]
    room = least.allowed - least.used
    text = f"{least.used} of {least.allowed} that {least.name} allows are in use, {least.ours} by lmsearch"
    if room <= 0:
        text += "; no worker more can join: raise it, or start fewer workers"
        yield Finding(check="connections", state=PROBLEM, text=text)
        return
    yield Finding(check="connections", state=OK, text=f"{text}; {count(room, 'worker')} more can join")


def _studies(storage: FencedStorage, options: Options, studies: list[StudyTickets]) -> Iterator[Finding]:
    """Check each study's tickets and rows without a study; `studies` gets those that can be read."""
    infos, unreadable = readable_studies(storage)
    for name, why in unreadable.items():
        text = f"{name} cannot be read, and its rows and files are left alone: {why}"
        yield Finding(check="leases", state=PROBLEM, text=text)
    for info in infos:
        name = info.ref.name
        if is_copy(storage, info):
            text = f"{name} was copied or renamed by another program; its first worker makes it a study of its own"
            yield Finding(check="leases", state=NOTE, text=text)
            continue
        yield from _study(storage, info, options)
        yield from _queued(storage, info)
        studies.append(StudyTickets(info=info, tickets=tuple(list_tickets(storage, info.ref))))
    if unreadable:
        text = "whether rows belong to no study is not known while a study cannot be read"
        yield Finding(check="leases", state=UNCHECKED, text=text)
    elif leftovers := health.count_leftovers(storage, study_keys(storage)):
        wrong = f"{count(leftovers, 'row')} of tickets and epochs whose studies are gone"
        yield from mend("leases", options.repair, wrong, "removed", lambda: _remove_leftovers(storage))
    if not infos and not unreadable:
        yield Finding(check="leases", state=OK, text="the store has no study yet; start one with: lmsearch run")


def _queued(storage: FencedStorage, info: StudyInfo) -> Iterator[Finding]:
    """Name trials that another program enqueued by Optuna's own means: no worker takes them."""
    record = read_study(storage, info)
    queued = [trial for trial in record.trials if trial.outcome == "waiting" and trial.ticket is None]
    if not queued:
        return
    numbers = ", ".join(str(trial.number) for trial in queued[:10]) + (" …" if len(queued) > 10 else "")
    fixed = storage.get_trial(queued[0].id).system_attrs.get("fixed_params", {})
    values = [f"{path}={spell_value(value)}" for path, value in fixed.items()] if isinstance(fixed, dict) else []
    yield Finding(
        check="leases",
        state=PROBLEM,
        text=(
            f"{info.ref.name}: trials {numbers} were enqueued by Optuna's study.enqueue_trial, which no worker takes "
            f"from; add their values with: {shlex.join(['lmsearch', 'enqueue', info.ref.name, *values])}, and end them "
            f"with: lmsearch fail {shlex.quote(info.ref.name)} {queued[0].number}"
        ),
    )


def _remove_leftovers(storage: FencedStorage) -> None:
    with creating(storage):
        health.remove_leftovers(storage, study_keys(storage))


def _study(storage: FencedStorage, info: StudyInfo, options: Options) -> Iterator[Finding]:
    name = info.ref.name
    if ended := health.ended_from_outside(storage, info.ref):
        wrong = f"{name}: {_trials(ended)} ended from outside, with the ticket still open"
        yield from mend("leases", options.repair, wrong, "closed", lambda: close_ended(storage, info.ref))
    now, boot = present(storage)
    held = [ticket for ticket in list_tickets(storage, info.ref) if ticket.is_running]
    for ticket in held:
        if _is_gone(ticket, boot):
            yield from _dead(storage, info, ticket, now, options)
        elif not ticket.is_leased(now, boot):
            text = f"{name}: the lease of {_of(ticket)} ran out ({_holder(ticket)}); the next free worker resumes"
            text += f" it: {options.command(['lmsearch', 'worker', name])}"
            yield Finding(check="leases", state=NOTE, text=text)
    yield from _orphaned(storage, info, options)
    yield _at_work(storage, info, now, boot)


def _is_gone(ticket: Ticket, boot: str) -> bool:
    """Whether a ticket's holder was a process of this host, and of this boot, that is no more.

    Where any process has its number now, be it another one, this is false.
    """
    return (
        _sees_every_process(boot)
        and ticket.host == socket.gethostname()
        and ticket.boot == boot
        and ticket.process is not None
        and not is_running(ticket.process)
    )


def _sees_every_process(boot: str) -> bool:
    """Whether a process of this host cannot hide: containers may have one host name and processes of their own."""
    if boot != "server":
        return True  # SQLite: whoever has the file is here
    try:
        return Path("/proc/self/ns/pid").readlink().name == _FIRST_NAMESPACE
    except OSError:
        return False


def _dead(storage: FencedStorage, info: StudyInfo, ticket: Ticket, now: float, options: Options) -> Iterator[Finding]:
    """Release what a dead process held, once it has been silent for longer than a live one ever is.

    Two hosts, or a host and a container on it, may have one name: then the process lives where this one cannot look.
    """
    name = info.ref.name
    wrong = f"{name}: process {ticket.process} of this host, which held {_of(ticket)}, is gone"
    seen, expires = ticket.seen or 0.0, ticket.expires or 0.0
    wait = (expires - seen) * _SILENT - (now - seen)
    if wait > 0:
        text = f"{wrong}, not long since; run this again in {max(1.0, wait):.0f} s"
        yield Finding(check="leases", state=PROBLEM, text=text)
        return
    if options.repair and not health.release_silent(storage, ticket):
        yield Finding(check="leases", state=OK, text=f"{name}: {_of(ticket)} continued meanwhile")
        return
    remedy = "released, to resume from its last checkpoint"
    yield from mend("leases", options.repair, wrong, remedy, lambda: None)


def _orphaned(storage: FencedStorage, info: StudyInfo, options: Options) -> Iterator[Finding]:
    name = info.ref.name
    found = health.orphaned_trials(storage, info.ref)
    foreign = [trial.number for trial in found if not trial.is_ours and not trial.has_ticket]
    if foreign:
        text = f"{name}: {_trials(foreign)} RUNNING without a ticket, for another program, which must end them itself"
        yield Finding(check="leases", state=NOTE, text=text)
    for trial in found:
        if trial.number in foreign:
            continue
        why = "its ticket is done" if trial.has_ticket else "its ticket is not there"
        end = options.command(["lmsearch", "fail", name, str(trial.number)])
        text = f"{name}: trial {trial.number} is RUNNING though {why}; end it with: {end}"
        yield Finding(check="leases", state=PROBLEM, text=text)


def _at_work(storage: FencedStorage, info: StudyInfo, now: float, boot: str) -> Finding:
    tickets = list_tickets(storage, info.ref)
    done = sum(ticket.is_done for ticket in tickets)
    live = [ticket for ticket in tickets if ticket.is_leased(now, boot)]
    workers = [f"{_of(t)} ({_holder(t)}, last seen {max(0.0, now - (t.seen or now)):.0f} s ago)" for t in live]
    text = f"{info.ref.name}: {done} of {len(tickets)} trials are done; "
    return Finding(
        check="leases", state=OK, text=text + (f"running: {listed(workers)}" if workers else "no worker is running")
    )


def _holder(ticket: Ticket) -> str:
    return f"{ticket.host}, process {ticket.process}, {ticket.device}"


def _of(ticket: Ticket) -> str:
    return f"ticket {ticket.number}" if ticket.trial_number is None else f"trial {ticket.trial_number}"


def _trials(numbers: Sequence[int]) -> str:
    return f"trial {numbers[0]} is" if len(numbers) == 1 else f"trials {listed(numbers)} are"


def _disk(storage: FencedStorage, options: Options, studies: Sequence[StudyTickets]) -> Iterator[Finding]:
    host, runs = socket.gethostname(), options.runs
    shared = None if options.artifacts is None else options.artifacts.folder
    roots = [runs] if shared is None else [runs, shared]
    folders = sorted({folder for root in roots for folder in checkpoint_folders(root, host, studies)})
    elsewhere = [folder for folder in folders if runs.resolve() not in folder.parents]
    rooms = [runs, options.cache, *elsewhere]
    store_folder = Path(str(storage.store_url.database)).parent
    if storage.engine.name == "sqlite" and store_folder != runs.resolve():
        rooms.append(store_folder)
    yield from check_room(rooms, largest_checkpoint(folders))
    models = [folder.parent / MODELS for folder in elsewhere]
    drafts = [*folders_of_ours(runs, options.cache), *elsewhere, *models]
    yield from check_drafts(drafts, options.repair)
    yield from check_checkpoints(storage, folders, host, studies, options.repair)
    if not readable_studies(storage)[1]:  # else a study's files would be reported as nobody's
        yield from check_foreign_files(folders, study_keys(storage))

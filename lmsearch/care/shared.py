"""The artifacts that the hosts of a search share: whether they answer, and what of them nobody needs any more."""

import secrets
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from lmsearch.care.disk import StudyTickets
from lmsearch.care.findings import OK, PROBLEM, Finding, mend
from lmsearch.errors import LmsearchError
from lmsearch.folders import WEIGHTS, named_in, study_folder
from lmsearch.spelling import count
from lmsearch.store.artifacts import Artifacts, fetch_file, study_files
from lmsearch.store.belonging import LEFT, Belonging
from lmsearch.store.checkpoints import SHORT, Checkpoints
from lmsearch.store.storage import FencedStorage
from lmsearch.store.weights import Weights


def check_artifacts(artifacts: Artifacts) -> Iterator[Finding]:
    """Write an object, read it back and remove it."""
    name, content = f"probe-{secrets.token_hex(4)}", secrets.token_bytes(64)
    start = time.monotonic()
    try:
        objects = artifacts.objects()
        objects.put(name, content)
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / name
            same = fetch_file(objects, name, copy) and copy.read_bytes() == content
        objects.remove(name)
    except (LmsearchError, OSError) as error:
        yield Finding(check="artifacts", state=PROBLEM, text=f"{error}; workers cannot share files there")
        return
    if not same:
        text = f"{artifacts} does not give back what is written to it"
        yield Finding(check="artifacts", state=PROBLEM, text=text)
        return
    took = 1e3 * (time.monotonic() - start)
    yield Finding(check="artifacts", state=OK, text=f"{artifacts} can be written, read and cleaned, in {took:.0f} ms")


def check_shared(
    artifacts: Artifacts, storage: FencedStorage, runs: Path, studies: Sequence[StudyTickets], repair: bool
) -> Iterator[Finding]:
    """Look for what ended trials have left in an object store; a shared folder is looked at as a disk is."""
    if artifacts.folder is not None:
        return
    for study in studies:
        info = study.info
        files = study_files(artifacts, info.ref.name, info.ref.key, study_folder(info.ref.name, runs))
        checkpoints, weights = Checkpoints.of(files, ""), Weights.of(files)
        paths = checkpoints.shared_of_study(info.ref.key)
        folders = [files.models / name for name in sorted(weights.shared_names(info.ref.key[:SHORT]))]
        if not paths and not folders:
            continue
        trials = storage.get_all_trials(info.ref.id, deepcopy=False)
        belonging = Belonging(storage, info, study.tickets, trials)
        kept = {named_in(WEIGHTS, str(trial.user_attrs.get("model", ""))) for trial in trials}
        left = [path for path in paths if belonging.of_checkpoint(path) == LEFT]
        forgotten = [path for path in folders if path.name not in kept and belonging.of_weights(path) == LEFT]
        name = info.ref.name
        if left or forgotten:
            wrong = f"{name}: {count(len(left) + len(forgotten), 'object')} of ended trials in {artifacts}"

            def sweep(
                left: list[Path] = left,
                forgotten: list[Path] = forgotten,
                checkpoints: Checkpoints = checkpoints,
                weights: Weights = weights,
            ) -> None:
                for path in left:
                    checkpoints.discard(path)
                for path in forgotten:
                    weights.remove(path)

            yield from mend("artifacts", repair, wrong, "removed", sweep, [path.name for path in [*left, *forgotten]])
            continue
        text = f"{name}: {count(len(paths), 'checkpoint')} and {count(len(folders), 'model')} in {artifacts}"
        yield Finding(check="artifacts", state=OK, text=text)

"""Checkpoints: written whole, found by their ticket, doubted until the checksum agrees."""

import dataclasses
import math
from pathlib import Path

import pytest

from lmsearch.store.checkpoints import Checkpoint, Checkpoints, read_checkpoint
from lmsearch.store.tables import Ticket
from tests.store.helpers import epoch_row

DIGEST = "d1" * 32
WEIGHTS = "a" * 12 + "-trial-7-d1d1d1d1d1d1-epoch-2-lease-1"


def make_ticket(lease: int = 1, checkpoint: str | None = None, number: int = 7) -> Ticket:
    values: dict[str, object] = dict.fromkeys(field.name for field in dataclasses.fields(Ticket))
    values |= {"study_key": "a" * 32, "number": number, "lease": lease, "checkpoint": checkpoint}
    return Ticket(**values)  # type: ignore[arg-type]


def make_checkpoint(state: bytes = b"state", epochs: int = 0) -> Checkpoint:
    rows = tuple(epoch_row(n) for n in range(1, epochs + 1))
    return Checkpoint(epochs=rows, best_model=None, at_epoch_end=False, state=state, digest=DIGEST)


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    return Checkpoints(tmp_path, "here")


def find_in(checkpoints: Checkpoints, ticket: Ticket) -> Checkpoint | None:
    return checkpoints.find(ticket, DIGEST, []).checkpoint


def files(checkpoints: Checkpoints) -> list[str]:
    return sorted(path.name for path in checkpoints.folder.glob("*.checkpoint"))


def test_what_is_saved_is_found_by_the_key_in_the_ticket(checkpoints: Checkpoints) -> None:
    odd = dataclasses.replace(epoch_row(2), train_loss=math.inf, valid_loss=0.1 + 0.2)
    saved = Checkpoint(
        epochs=(epoch_row(1), odd), best_model=WEIGHTS, at_epoch_end=True, state=b"\x00\n\xff", digest=DIGEST
    )
    key = checkpoints.save(make_ticket(), 2, 40, saved)
    assert find_in(checkpoints, make_ticket(lease=2, checkpoint=key)) == saved


def test_the_last_two_are_kept(checkpoints: Checkpoints) -> None:
    for epoch in (1, 2, 3, 10):
        checkpoints.save(make_ticket(), epoch, 10 * epoch, make_checkpoint())
    assert [name.split("-")[3] for name in files(checkpoints)] == ["e10", "e3"]


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "gone"])
def test_a_damaged_file_is_not_believed_and_the_one_before_is_used(checkpoints: Checkpoints, damage: str) -> None:
    checkpoints.save(make_ticket(), 1, 10, make_checkpoint(b"first"))
    key = checkpoints.save(make_ticket(), 2, 20, make_checkpoint(b"second"))
    path = Path(key.partition(":")[2])
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[-2] ^= 1
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(bytes({"cut": content[:-1], "flip": content, "empty": bytearray()}[damage]))
    assert read_checkpoint(path) is None
    found = checkpoints.find(make_ticket(lease=2, checkpoint=key), DIGEST, [])
    assert found.checkpoint is not None and found.checkpoint.state == b"first"
    assert (f"the checksum of {path.name} fails" in found.remark) == (damage != "gone")


def test_a_later_file_of_the_lease_just_before_is_taken_an_older_owners_is_not(checkpoints: Checkpoints) -> None:
    named = checkpoints.save(make_ticket(lease=3), 1, 10, make_checkpoint(b"named"))
    checkpoints.save(make_ticket(lease=3), 2, 20, make_checkpoint(b"left by an outage"))
    after = find_in(checkpoints, make_ticket(lease=4, checkpoint=named))
    assert after is not None and after.state == b"left by an outage"
    later = find_in(checkpoints, make_ticket(lease=5, checkpoint=named))
    assert later is not None and later.state == b"named"


def test_a_file_left_before_the_first_report_is_taken(checkpoints: Checkpoints) -> None:
    checkpoints.save(make_ticket(lease=1), 1, 3, make_checkpoint(b"unreported"))
    found = find_in(checkpoints, make_ticket(lease=2))
    assert found is not None and found.state == b"unreported"
    assert find_in(checkpoints, make_ticket(lease=3)) is None


def test_a_file_on_another_host_cannot_be_read_and_the_host_is_named(checkpoints: Checkpoints, tmp_path: Path) -> None:
    key = checkpoints.save(make_ticket(), 1, 10, make_checkpoint())
    there = Checkpoints(tmp_path / "another", "there")
    found = there.find(make_ticket(lease=5, checkpoint=key), DIGEST, [])
    assert found.checkpoint is None
    assert found.remark == "its checkpoint lies on here; share it with --artifacts to resume from there"


def test_a_file_in_a_folder_that_hosts_share_is_found_wherever_it_is_mounted(
    checkpoints: Checkpoints, tmp_path: Path
) -> None:
    key = checkpoints.save(make_ticket(), 1, 10, make_checkpoint(b"shared"))
    shared = tmp_path.rename(tmp_path.with_name(tmp_path.name + "-as-mounted-there"))
    found = find_in(Checkpoints(shared, "there"), make_ticket(lease=2, checkpoint=key))
    assert found is not None and found.state == b"shared"


def test_a_quota_takes_the_file_before_the_last_and_then_refuses_a_new_one(checkpoints: Checkpoints) -> None:
    first = checkpoints.save(make_ticket(), 1, 10, make_checkpoint(bytes(1_000)))
    size = Path(first.partition(":")[2]).stat().st_size
    small = Checkpoints(checkpoints.folder, "here", quota=2.5 * size)
    small.save(make_ticket(), 2, 20, make_checkpoint(bytes(1_000)))
    small.save(make_ticket(), 3, 30, make_checkpoint(bytes(1_000)))
    assert [name.split("-")[3] for name in files(small)] == ["e2", "e3"]
    with pytest.raises(OSError, match="the quota of .* bytes for checkpoints is reached"):
        small.save(make_ticket(number=8), 1, 10, make_checkpoint(bytes(1_000)))
    assert [name.split("-")[3] for name in files(small)] == ["e2", "e3"]
    other_study = dataclasses.replace(make_ticket(), study_key="b" * 32)
    small.save(other_study, 1, 10, make_checkpoint(bytes(1_000)))
    assert len(files(small)) == 3


def test_an_owner_that_lost_the_lease_removes_its_own_files_only(checkpoints: Checkpoints) -> None:
    checkpoints.save(make_ticket(lease=1), 1, 10, make_checkpoint())
    checkpoints.save(make_ticket(lease=2), 1, 12, make_checkpoint())
    checkpoints.save(make_ticket(lease=1, number=77), 1, 12, make_checkpoint())
    checkpoints.remove_unreported(make_ticket(lease=1), DIGEST, None)
    assert [name.split("-")[1::4] for name in files(checkpoints)] == [["7", "l2.checkpoint"], ["77", "l1.checkpoint"]]
    checkpoints.remove(make_ticket(lease=2), DIGEST, [])
    assert [name.split("-")[1] for name in files(checkpoints)] == ["77"]


def test_the_file_that_the_ticket_names_is_found_in_another_folder_of_this_host(
    checkpoints: Checkpoints, tmp_path: Path
) -> None:
    key = checkpoints.save(make_ticket(), 1, 10, make_checkpoint(b"there"))
    elsewhere = Checkpoints(tmp_path / "elsewhere", "here")
    found = find_in(elsewhere, make_ticket(lease=2, checkpoint=key))
    assert found is not None and found.state == b"there"


def test_a_new_file_is_kept_though_an_earlier_lease_left_files_of_later_epochs(checkpoints: Checkpoints) -> None:
    for epoch in (5, 6):
        checkpoints.save(make_ticket(lease=1), epoch, 10 * epoch, make_checkpoint())
    key = checkpoints.save(make_ticket(lease=3), 1, 10, make_checkpoint(b"again"))
    found = find_in(checkpoints, make_ticket(lease=4, checkpoint=key))
    assert found is not None and found.state == b"again"


def test_a_woken_worker_keeps_the_file_that_the_ticket_names_and_drops_what_came_after(
    checkpoints: Checkpoints,
) -> None:
    """Whoever took over begins there, and may die before it has a file of its own."""
    named = checkpoints.save(make_ticket(lease=1), 5, 50, make_checkpoint(b"reported"))
    checkpoints.save(make_ticket(lease=1), 6, 60, make_checkpoint(b"refused"))
    checkpoints.remove_unreported(make_ticket(lease=1), DIGEST, named)
    assert [name.split("-")[3] for name in files(checkpoints)] == ["e5"]
    found = checkpoints.find(make_ticket(lease=3, checkpoint=named), DIGEST, []).checkpoint
    assert found is not None and found.state == b"reported"

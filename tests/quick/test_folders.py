"""Names from elsewhere never lead outside; folders of ours are distinguished from other people's."""

import json
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lmsearch.errors import ConfigError, StudyError
from lmsearch.folders import (
    CHECKPOINT,
    MARK,
    WEIGHTS,
    check_replaceable,
    drafts,
    has_ours,
    is_ours,
    make_folder,
    mark_of,
    read_name,
    remove_weights,
    study_folder,
)

HOSTILE = st.one_of(
    st.text(max_size=80),
    st.sampled_from(
        ["..", ".", "", "/", "../..", "../../*", "/etc", "a/b", "~", "\0", "-rf", "*", "[a-z]*", "x" * 300]
    ),
    st.builds("/".join, st.lists(st.sampled_from(["..", "a", "", "*", "runs"]), max_size=4)),
    st.from_regex(WEIGHTS, fullmatch=True).map(lambda name: f"../{name}"),
    st.from_regex(CHECKPOINT, fullmatch=True).map(lambda name: f"{name}/../../x"),
)


@given(name=HOSTILE)
def test_a_studys_name_is_a_folder_directly_in_runs_or_refused(name: str) -> None:
    runs = Path("/somewhere/runs")
    try:
        folder = study_folder(name, runs)
    except StudyError:
        return
    assert folder.parent == runs and folder.name == name and name not in ("", ".", "..")


@given(name=HOSTILE)
@example(name="0" * 12 + "-trial-1-epoch-1-lease-1/../../../etc")
@example(name="0" * 12 + "-1-e1-s1-l1.checkpoint\n")
def test_a_name_of_ours_has_no_part_that_leads_elsewhere(name: str) -> None:
    for pattern in (CHECKPOINT, WEIGHTS):
        if read_name(pattern, name) is not None:
            assert Path(name).name == name and set(name) <= set("0123456789abcdefghijklmnopqrstuvwxyz-.")


def test_only_weights_in_a_folder_of_ours_are_removed(tmp_path: Path) -> None:
    name = "0123456789ab-trial-3-epoch-2-lease-1"
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "thesis.txt").write_text("years")
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    make_folder(ours)
    for folder in (theirs, ours):
        folder.mkdir(exist_ok=True)
        (folder / name).mkdir()
        (folder / "notes").mkdir()
    (ours / name.replace("-3-", "-4-")).symlink_to(victim)
    for path in (theirs / name, ours / "notes", ours / name.replace("-3-", "-4-"), ours / ".." / "victim"):
        remove_weights(path)
        assert path.exists()
    remove_weights(ours / name)
    assert not (ours / name).exists() and (victim / "thesis.txt").read_text() == "years"


def test_a_folder_is_marked_where_we_made_it_and_not_where_a_user_did(tmp_path: Path) -> None:
    make_folder(new := tmp_path / "a" / "new", results_of="k")
    assert is_ours(new) and (mark_of(new) or {})["results_of"] == "k"
    make_folder(new)
    assert (mark_of(new) or {})["results_of"] == "k"
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "novel.txt").write_text("x")
    make_folder(theirs)
    assert not is_ours(theirs) and not (theirs / MARK).exists()
    link = tmp_path / "on-a-larger-disk"
    link.symlink_to(new)
    assert is_ours(link)
    around = tmp_path / "around"
    make_folder(around / "checkpoints")
    (around / "trials.csv").write_text("mine")
    make_folder(around)
    assert not is_ours(around)  # what we made within it does not make it ours


@pytest.mark.parametrize(
    "name", ["0" * 32, "0123456789ab-1-e1-s1-l1.checkpoint", "best-config.json", "best-model", "seed-1"]
)
def test_a_folder_without_a_mark_is_ours_only_by_a_valid_file_of_ours(tmp_path: Path, name: str) -> None:
    """An empty file, a folder or rubbish of such a name does not make a folder ours."""
    for make in (Path.touch, Path.mkdir, lambda path: path.write_bytes(b"\xff" * 99)):
        folder = tmp_path / f"of-{getattr(make, '__name__', 'x')}"
        folder.mkdir()
        make(folder / name)
        assert not has_ours(folder) and drafts(folder) == []
    valid = tmp_path / "valid"
    valid.mkdir()
    if name.endswith(".checkpoint"):
        (valid / name).write_bytes(b"lmsearch-checkpoint-1 " + b"0" * 64 + b"\n")
    elif name.endswith(".json"):
        (valid / name).write_text(json.dumps({part: {} for part in ("model", "train", "result", "provenance")}))
    else:
        (valid / name).mkdir()
        for part in ("config", "metrics", "vocabulary"):
            (valid / name / f"{part}.json").write_text("{}")
        (valid / name / "model.safetensors").touch()
        (valid / name / "meta.json").write_text('{"words": [], "fingerprint": "", "splits": []}')
    assert has_ours(valid)


def test_a_folder_that_is_no_model_is_not_replaced(tmp_path: Path) -> None:
    theirs = tmp_path / "best-model"
    theirs.mkdir()
    check_replaceable(theirs)
    (theirs / "notes.txt").write_text("x")
    with pytest.raises(ConfigError, match="is there and is no model of lmsearch's; move it away"):
        check_replaceable(theirs)

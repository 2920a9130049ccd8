"""Files that hosts share: written whole, found from an empty host, never believed, and missed without a loss."""

import zipfile
from pathlib import Path

import pytest

from lmsearch.errors import ConfigError, StudyError
from lmsearch.folders import MODEL_FILES
from lmsearch.store.artifacts import (
    Artifacts,
    ArtifactsError,
    FolderObjects,
    Objects,
    fetch_file,
    fetch_folder,
    put_folder,
    study_files,
)
from lmsearch.store.checkpoints import Checkpoints
from lmsearch.store.weights import Weights
from tests.buckets import Bucket
from tests.store.test_checkpoints import DIGEST, WEIGHTS, find_in, make_checkpoint, make_ticket


@pytest.fixture(params=["folder", "bucket"])
def objects(request: pytest.FixtureRequest, tmp_path: Path) -> Objects:
    return FolderObjects(tmp_path / "shared") if request.param == "folder" else Bucket().objects()


def test_an_object_is_there_whole_until_it_is_removed(objects: Objects, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"second")
    objects.put("a.zip", b"first")
    objects.put("b.zip", source)
    objects.under("inner").put("c.zip", b"third")
    assert objects.names() == ["a.zip", "b.zip"] and objects.under("inner").names() == ["c.zip"]
    assert objects.head("a.zip", 3) == b"fir" and objects.head("none", 3) == b""
    assert fetch_file(objects, "b.zip", tmp_path / "copy") and (tmp_path / "copy").read_bytes() == b"second"
    assert not fetch_file(objects, "none", tmp_path / "none") and not (tmp_path / "none").exists()
    objects.remove("a.zip")
    objects.remove("a.zip")
    assert objects.names() == ["b.zip"] and objects.under("nothing").names() == []
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "shared") == ["copy", "source"]


@pytest.mark.parametrize("name", ["../x", "/x", "a/../x", "", ".x", "a\0b", "a?b", "a//b"])
def test_a_name_that_is_none_of_ours_reaches_nothing(objects: Objects, tmp_path: Path, name: str) -> None:
    for call in (lambda: objects.put(name, b""), lambda: objects.remove(name), lambda: objects.under(name)):
        with pytest.raises(ArtifactsError, match="no name of an object"):
            call()


def test_a_link_in_a_shared_folder_is_not_followed(tmp_path: Path) -> None:
    objects = FolderObjects(tmp_path / "shared")
    objects.put("a", b"ours")
    (tmp_path / "secret").write_text("theirs")
    (tmp_path / "shared/b").symlink_to(tmp_path / "secret")
    assert not fetch_file(objects, "b", tmp_path / "copy") and objects.head("b", 9) == b""


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("/data/shared", "/data/shared"),
        ("file:///data/shared", "/data/shared"),
        ("s3://bucket/folder/", "s3://bucket/folder"),
        ("s3://bucket", "s3://bucket"),
    ],
)
def test_a_folder_or_a_url_is_read(text: str, meant: str) -> None:
    assert Artifacts.parse(text).url == meant


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("s3://", "no URL of artifacts"),
        ("s3://bucket/../other", "no URL of artifacts"),
        ("s3://bucket/x?versionId=1", "no URL of artifacts"),
        ("s3://key:secret@bucket/x", "a user or a password"),
        ("foo://bucket", "no store of artifacts is called 'foo'"),
        ("memory://bucket", "no store of artifacts is called 'memory'"),
        ("simplecache::s3://bucket", "no store of artifacts is called"),
        ("", "names no folder"),
    ],
)
def test_what_is_no_place_for_artifacts_is_refused(text: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        Artifacts.parse(text)


def test_a_study_whose_name_leads_elsewhere_has_no_folder_among_the_artifacts(tmp_path: Path) -> None:
    with pytest.raises(StudyError):
        study_files(Artifacts(str(tmp_path)), "..", "a" * 32, tmp_path)


@pytest.mark.parametrize("damage", ["cut", "lacks", "compressed", "encrypted", "text", "empty"])
def test_a_damaged_object_makes_no_folder(tmp_path: Path, damage: str) -> None:
    objects = Bucket().objects()
    source = tmp_path / "source"
    source.mkdir()
    for name in MODEL_FILES:
        (source / name).write_text(name * 100)
    put_folder(objects, "good.zip", source, MODEL_FILES)
    assert fetch_folder(objects, "good.zip", tmp_path / "good", MODEL_FILES, MODEL_FILES)
    assert {path.name: path.read_text() for path in (tmp_path / "good").iterdir()} == {
        name: name * 100 for name in MODEL_FILES
    }
    fetch_file(objects, "good.zip", tmp_path / "packed")
    content = (tmp_path / "packed").read_bytes()
    if damage in ("lacks", "compressed"):
        kind = zipfile.ZIP_DEFLATED if damage == "compressed" else zipfile.ZIP_STORED
        with zipfile.ZipFile(tmp_path / "packed", "w", kind) as archive:
            for name in MODEL_FILES[damage == "lacks" :]:
                archive.writestr(name, "0" * 1_000_000)
        content = (tmp_path / "packed").read_bytes()
    elif damage == "encrypted":
        content = content.replace(b"PK\x01\x02\x14\x03\x14\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01")
    else:
        content = {"cut": content[:-30], "text": b"a text", "empty": b""}[damage]
    objects.put("bad.zip", content)
    assert not fetch_folder(objects, "bad.zip", tmp_path / "bad", MODEL_FILES, MODEL_FILES)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["good", "packed", "source"]


def test_what_else_is_in_an_object_is_not_looked_at(tmp_path: Path) -> None:
    objects = Bucket().objects()
    with zipfile.ZipFile(tmp_path / "packed", "w") as archive:
        for name in (*MODEL_FILES, "../evil", "/tmp/evil", "more"):
            archive.writestr(name, "x")
    objects.put("odd.zip", tmp_path / "packed")
    assert fetch_folder(objects, "odd.zip", tmp_path / "model", MODEL_FILES, MODEL_FILES)
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == sorted(MODEL_FILES)
    assert not (tmp_path / "evil").exists()


def host(bucket: Bucket, folder: Path, name: str) -> Checkpoints:
    """Give the checkpoints of a study as one host has them."""
    return Checkpoints(folder / name, name, objects=bucket.objects().under("checkpoints"))


def test_a_checkpoint_is_found_from_a_host_with_an_empty_disk(tmp_path: Path) -> None:
    bucket = Bucket()
    first, second = host(bucket, tmp_path, "first"), host(bucket, tmp_path, "second")
    for epoch in (1, 2, 3):
        key = first.save(make_ticket(), epoch, 10 * epoch, make_checkpoint(f"state {epoch}".encode()))
    assert [name.split("-")[3] for name in bucket.names()] == ["e2", "e3"]
    found = find_in(second, make_ticket(lease=2, checkpoint=key))
    assert found is not None and found.state == b"state 3"
    # and goes on there, where what the first host wrote is removed in its turn
    key = second.save(make_ticket(lease=2), 4, 40, make_checkpoint(b"state 4"))
    assert [name.split("-")[3] for name in bucket.names()] == ["e3", "e4"]
    second.remove(make_ticket(lease=2, checkpoint=key), DIGEST, [])
    assert bucket.names() == [] and list(second.folder.glob("*.checkpoint")) == []


def test_a_damaged_copy_here_is_replaced_by_the_one_in_the_bucket(tmp_path: Path) -> None:
    here = host(Bucket(), tmp_path, "here")
    key = here.save(make_ticket(), 1, 10, make_checkpoint(b"whole"))
    Path(key.partition(":")[2]).write_bytes(b"torn")
    found = find_in(here, make_ticket(lease=2, checkpoint=key))
    assert found is not None and found.state == b"whole"


@pytest.mark.parametrize("content", [b"", b"lmsearch-checkpoint-2 0.3.0 " + b"0" * 64 + b"\n{}", b"\0" * 5000])
def test_what_a_bucket_has_under_the_name_is_doubted(tmp_path: Path, content: bytes) -> None:
    bucket = Bucket()
    key = host(bucket, tmp_path, "first").save(make_ticket(), 1, 10, make_checkpoint())
    (name,) = bucket.names()
    bucket.pipe_file(f"memory://bucket/lm/{name}", content)
    second = host(bucket, tmp_path, "second")
    found = second.find(make_ticket(lease=2, checkpoint=key), DIGEST, [])
    assert found.checkpoint is None and "the checksum of" in found.remark


def test_a_bucket_that_is_away_costs_the_upload_and_the_older_checkpoint_stays_good(tmp_path: Path) -> None:
    bucket = Bucket()
    first, second = host(bucket, tmp_path, "first"), host(bucket, tmp_path, "second")
    named = first.save(make_ticket(), 1, 10, make_checkpoint(b"first"))
    bucket.is_away = True
    with pytest.raises(ArtifactsError, match="cannot be written: Could not connect"):
        first.save(make_ticket(), 2, 20, make_checkpoint(b"second"))
    # The host that has the named file needs no bucket; one that has it not must not start again.
    found = find_in(first, make_ticket(lease=3, checkpoint=named))
    assert found is not None and found.state == b"first"
    with pytest.raises(ArtifactsError):
        second.find(make_ticket(lease=2, checkpoint=named), DIGEST, [])
    assert second.find(make_ticket(lease=1), DIGEST, []).checkpoint is None  # nothing was saved: nothing is missed
    bucket.is_away = False
    found = find_in(second, make_ticket(lease=3, checkpoint=named))
    assert found is not None and found.state == b"first"


def test_an_older_copy_here_is_not_taken_while_the_named_one_may_be_in_a_bucket_that_is_away(tmp_path: Path) -> None:
    bucket = Bucket()
    first, second = host(bucket, tmp_path, "first"), host(bucket, tmp_path, "second")
    old = second.save(make_ticket(), 1, 10, make_checkpoint(b"old"))
    new = first.save(make_ticket(lease=2, checkpoint=old), 5, 50, make_checkpoint(b"new"))
    bucket.is_away = True
    with pytest.raises(ArtifactsError):
        second.find(make_ticket(lease=3, checkpoint=new), DIGEST, [])


def test_a_checkpoint_of_a_later_lmsearch_stays_in_the_bucket(tmp_path: Path) -> None:
    bucket = Bucket()
    here = host(bucket, tmp_path, "here")
    here.save(make_ticket(), 1, 10, make_checkpoint())
    (name,) = bucket.names()
    later = b"lmsearch-checkpoint-99 9.0.0 " + b"0" * 64 + b"\n"
    bucket.pipe_file(f"memory://bucket/lm/{name}", later)
    (here.folder / name.rpartition("/")[2]).write_bytes(later)
    here.remove(make_ticket(), DIGEST, [])
    assert bucket.names() == [name] and len(list(here.folder.glob("*.checkpoint"))) == 1


def test_a_record_of_a_host_and_a_path_still_finds_its_file_on_that_host(tmp_path: Path) -> None:
    """As lmsearch wrote it before there were artifacts: `HOST:PATH` of a folder that hosts may share."""
    before = Checkpoints(tmp_path / "shared/tiny/checkpoints", "here")
    key = before.save(make_ticket(), 3, 30, make_checkpoint(b"before"))
    assert key.startswith(f"here:{tmp_path}/shared/tiny/checkpoints/")
    bucket = Bucket()
    found = find_in(host(bucket, tmp_path, "here"), make_ticket(lease=2, checkpoint=key))
    assert found is not None and found.state == b"before"
    same_folder = study_files(Artifacts(str(tmp_path / "shared")), "tiny", "a" * 32, tmp_path / "runs/tiny")
    found = find_in(Checkpoints.of(same_folder, "another"), make_ticket(lease=2, checkpoint=key))
    assert found is not None and found.state == b"before"


def make_weights(folder: Path, name: str = WEIGHTS) -> Path:
    (folder / name).mkdir(parents=True)
    for file in MODEL_FILES:
        (folder / name / file).write_text("{}")
    return folder / name


def test_weights_are_shared_once_the_bucket_answers_and_found_from_an_empty_host(tmp_path: Path) -> None:
    bucket = Bucket()
    first = Weights(tmp_path / "first", bucket.objects())
    second = Weights(tmp_path / "second", bucket.objects())
    make_weights(tmp_path / "first")
    first.add(WEIGHTS)
    bucket.is_away = True
    with pytest.raises(ArtifactsError):
        first.share()
    with pytest.raises(ArtifactsError):
        second.find(WEIGHTS)
    assert first.find(WEIGHTS) == tmp_path / "first" / WEIGHTS and first.names("a" * 12) == {WEIGHTS}
    bucket.is_away = False
    assert first.share() == WEIGHTS and first.share() == ""
    assert second.names("a" * 12) == {WEIGHTS} and second.find(WEIGHTS) == tmp_path / "second" / WEIGHTS
    assert second.find("../../etc") is None
    second.remove(tmp_path / "second" / WEIGHTS)
    assert bucket.names() == [] and not (tmp_path / "second" / WEIGHTS).exists()

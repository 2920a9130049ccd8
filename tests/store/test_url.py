"""Storage URLs: opened in one way, refused in one sentence, never shown with their password."""

from pathlib import Path

import pytest

from lmsearch.errors import StoreError, StoreGoneError
from lmsearch.store.opening import open_storage
from lmsearch.store.outages import Outage, WaitUpTo
from lmsearch.store.url import full_text, has_password, parse_url, redact

SECRET = "hunter2{}%40"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sqllite:///x.db", "the storage sqllite:// is not supported; write sqlite:///"),
        ("x.db", "'x.db' is not a storage URL; write sqlite:///"),
        ("mysql://me@host/db", "the storage mysql:// is not supported"),
        ("sqlite://", "names no file"),
        ("sqlite:///:memory:", "names no file"),
        ("postgresql://me@host", "names no database"),
        (f"postgresql://me:{SECRET}/db", "is not a storage URL"),
        (f"postgres//me:{SECRET}@host/db", "is not a storage URL"),
        (f"postgresql://me:{SECRET}@host:port/db", "is not a storage URL"),
        ("postgresql://me:hunter2%00@h/db", "has a byte of zero (%00)"),
        ("postgresql://me:hunter2@h:0/db", "a port is a number from 1 to 65535"),
        ("postgresql://me:hunter2@a..b/db", "has a host that is none"),
        ("postgresql://me:hunter2@h/db?hostaddr=nowhere", "has a host that is none"),
        ("postgresql://me:hunter2@h/db?replication=database", "over which no store can be used"),
    ],
)
def test_a_url_with_a_typo_is_refused_with_an_example_and_without_its_password(text: str, message: str) -> None:
    with pytest.raises(StoreError) as error:
        parse_url(text)
    assert message in str(error.value)
    assert "hunter2" not in str(error.value)


def test_a_relative_file_begins_in_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse_url("sqlite:///runs/x.db").database == str(tmp_path / "runs" / "x.db")


@pytest.mark.parametrize("text", ["postgres://me@h/d", "postgresql://me@h/d", "postgresql+psycopg://me@h/d"])
def test_every_name_of_postgresql_means_the_same_driver(text: str) -> None:
    assert parse_url(text).drivername == "postgresql+psycopg"
    assert redact(parse_url(text)) == "postgresql://me@h/d"


@pytest.mark.parametrize(
    "text",
    [
        f"postgresql://me:{SECRET}@h/d",
        f"postgresql://me@h/d?password={SECRET}",
    ],
)
def test_a_password_is_never_shown_and_always_kept(text: str) -> None:
    url = parse_url(text)
    assert has_password(url)
    assert "hunter2" not in redact(url) and "***" in redact(url)
    assert parse_url(full_text(url)) == url


def test_a_url_without_a_password_has_none() -> None:
    assert not has_password(parse_url("postgresql://postgres@/db?host=/tmp"))
    assert not has_password(parse_url("sqlite:///x.db"))


def test_a_store_that_is_not_there_is_refused_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="there is no store .*none.db; start a search with: lmsearch run"):
        open_storage(parse_url(f"sqlite:///{tmp_path}/none.db"))


def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.db"
    path.write_text("these are notes, not a database, and they are longer than a header " * 20)
    before = path.read_bytes()
    for create in (True, False):
        with pytest.raises(StoreError, match="file is not a database"):
            open_storage(parse_url(f"sqlite:///{path}"), create=create)
    assert path.read_bytes() == before


def test_a_store_that_is_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="is a folder"):
        open_storage(parse_url(f"sqlite:///{tmp_path}"), create=True)


def test_a_server_that_does_not_answer_is_waited_for_and_then_given_up_with_exit_code_75() -> None:
    url = parse_url(f"postgresql://me:{SECRET}@127.0.0.1:9/db")
    reasons: list[str] = []

    def patience(outage: Outage) -> bool:
        reasons.append(outage.reason)
        return outage.gone < 1

    with pytest.raises(StoreGoneError) as error:
        open_storage(url, patience=patience)
    assert error.value.exit_code == 75 and len(reasons) >= 2
    assert "hunter2" not in f"{error.value}{reasons}"


def test_a_database_that_does_not_exist_is_not_waited_for(postgres: str) -> None:
    with pytest.raises(StoreError, match='database "nowhere" does not exist'):
        open_storage(parse_url(postgres.format("nowhere")), create=True, patience=WaitUpTo(60))


def test_a_database_of_plain_optuna_gains_what_is_missing(tmp_path: Path) -> None:
    import optuna

    url = f"sqlite:///{tmp_path}/plain.db"
    optuna.create_study(storage=url, study_name="theirs")
    with pytest.raises(StoreError, match="was not made by lmsearch"):
        open_storage(parse_url(url), write=True)
    assert open_storage(parse_url(url)).get_all_studies()[0].study_name == "theirs"
    storage = open_storage(parse_url(url), create=True)
    assert [study.study_name for study in storage.get_all_studies()] == ["theirs"]


def test_a_schema_of_another_optuna_is_refused_with_its_own_advice(tmp_path: Path) -> None:
    import sqlite3

    url = parse_url(f"sqlite:///{tmp_path}/new.db")
    open_storage(url, create=True).engine.dispose()
    with sqlite3.connect(tmp_path / "new.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'v99.0.0.a'")
    with pytest.raises(StoreError, match="cannot be used: .*optuna"):
        open_storage(url, create=True)

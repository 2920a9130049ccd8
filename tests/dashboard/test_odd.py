"""What no page of ours sends: bodies of strangers, connections that say nothing, odd requests."""

import contextlib
import csv
import io
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest

from lmsearch.dashboard.prefix import check_prefix
from lmsearch.errors import LmsearchError
from tests.dashboard.served import TOKEN, Served, served


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory, prepared_sqlite: Path) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("dashboard")
    (folder / "store.db").write_bytes(prepared_sqlite.read_bytes())
    url = f"sqlite:///{folder}/store.db"
    with served(url, folder / "log", LMSEARCH_DASHBOARD_TOKEN=TOKEN) as server:
        yield server


def test_a_strangers_body_is_not_read(guarded: Served) -> None:
    """The answer is there before a byte of a gigabyte that is promised has been sent."""
    began = time.monotonic()
    for length in (b"Content-Length: 3000000", b"Transfer-Encoding: chunked"):
        with socket.create_connection(("127.0.0.1", guarded.port), 10) as visitor:
            visitor.sendall(
                b"POST /api/studies HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nContent-Type: application/json\r\n%s\r\n\r\n"
                % (guarded.port, length)
            )
            answer = b""
            while part := visitor.recv(1 << 16):
                answer += part
        assert answer.startswith(b"HTTP/1.1 401 Unauthorized") and b"needs a token" in answer, answer
        assert b"www-authenticate" in answer.lower() and b"x-frame-options" in answer.lower()
    assert time.monotonic() - began < 8


def test_a_body_of_more_than_a_few_megabytes_is_refused(guarded: Served) -> None:
    with socket.create_connection(("127.0.0.1", guarded.port), 10) as visitor:
        visitor.sendall(
            b"POST /api/studies HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nAuthorization: Bearer %s\r\n"
            b"Content-Length: 150000000\r\n\r\n" % (guarded.port, TOKEN.encode())
        )
        answer = visitor.recv(1 << 16)
    assert answer.startswith(b"HTTP/1.1 413"), answer


def test_idle_connections_lock_nobody_out(guarded: Served) -> None:
    with contextlib.ExitStack() as idle:
        for _ in range(400):
            idle.enter_context(socket.create_connection(("127.0.0.1", guarded.port), 10))
        began = time.monotonic()
        for _ in range(5):
            assert guarded.ask("/api/studies", Authorization=f"Bearer {TOKEN}").status == 200
        assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/api/studies/1?after=x", None, 400),
        ("GET", "/api/studies/1?after=-1", None, 400),
        ("GET", "/api/studies/1?after=", None, 400),
        ("GET", "/api/studies/1?after=0&after=x", None, 400),
        ("GET", f"/csv/{10**30}", None, 404),
        ("GET", "/api/studies/99/plot/slice", None, 404),
        ("GET", f"/api/studies/{10**30}?after=0", None, 404),
        ("GET", "/static/../secrets", None, 404),
        ("GET", "/static/%2e%2e/%2e%2e/etc/passwd", None, 404),
        ("GET", "/static//bundle.js", None, 404),
        ("GET", "/static/%00", None, 404),
        ("POST", "/api/studies", b"[1]", 400),
        ("POST", "/api/studies", b"null", 400),
        ("POST", "/api/studies", b"{", 400),
        ("POST", "/api/studies", b"[" * 100_000, 400),
        ("POST", "/api/studies/1/rename", b'"x"', 400),
        ("PUT", "/api/studies/1/note", b"7", 400),
        ("PUT", "/api/studies/1/note", b'{"body": {}, "version": "x"}', 404),
        ("PUT", "/api/studies/1/note", b"{}", 400),
        ("PUT", "/api/studies/999999/note", b'{"body": "x", "version": 1}', 404),
        ("POST", "/api/studies", b'{"study_name": 7, "directions": ["minimize"]}', 400),
        ("POST", "/api/studies", b'{"study_name": "a\\u001b[2J", "directions": ["minimize"]}', 400),
        ("POST", "/api/studies", b'{"study_name": "../../x", "directions": ["minimize"]}', 400),
        ("POST", "/api/studies", b'{"study_name": "x", "directions": 7}', 400),
        ("POST", "/api/studies", b'{"study_name": "x", "directions": [null]}', 400),
        ("POST", "/api/studies/1/rename", b'{"study_name": "a\\u202eb"}', 400),
        ("POST", "/api/trials/1/tell", b'{"state": []}', 400),
        ("POST", "/api/trials/999999/tell", b'{"state": "Fail"}', 404),
        ("POST", "/api/trials/1/user-attrs", b'{"user_attrs": 3}', 400),
    ],
)
def test_odd_requests_are_the_visitors_mistake_and_no_traceback(
    guarded: Served, method: str, path: str, body: bytes | None, status: int
) -> None:
    import http.client

    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", guarded.port, timeout=20)) as connection:
        headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        assert answer.status == status, answer.read()
        assert json.loads(answer.read())["reason"]


def test_ordinary_requests_still_come_through(guarded: Served) -> None:
    made = guarded.ask(
        "/api/studies", "POST", {"study_name": "by hand", "directions": ["minimize"]}, Authorization=f"Bearer {TOKEN}"
    )
    assert made.status in (200, 201), made.body
    id = json.loads(made.body)["study_summary"]["study_id"]
    note = {"body": "x" * 100_000, "version": 1}
    assert guarded.ask(f"/api/studies/{id}/note", "PUT", note, Authorization=f"Bearer {TOKEN}").status == 200
    assert guarded.ask(f"/api/studies/{id}?after=0", Authorization=f"Bearer {TOKEN}").status == 200


def test_a_downloaded_table_has_no_formula_and_a_name_that_is_a_header(tmp_path: Path, prepared_sqlite: Path) -> None:
    (tmp_path / "store.db").write_bytes(prepared_sqlite.read_bytes())
    url = f"sqlite:///{tmp_path}/store.db"
    study = optuna.create_study(study_name="日本 x", storage=url)
    study.add_trial(optuna.trial.create_trial(value=1.0, user_attrs={"=1+1": "=cmd()", "said": "plain, text"}))
    with served(url, tmp_path / "log") as server:
        answer = server.ask(f"/csv/{study._study_id}")
    assert answer.status == 200 and answer.headers["content-disposition"].isascii(), answer.body
    rows = list(csv.reader(io.StringIO(answer.body.decode())))
    assert rows[0][-2:] == ["UserAttribute =1+1", "UserAttribute said"] and rows[1][-2:] == ["'=cmd()", "plain, text"]
    assert rows[1][2] == "1.0"


@pytest.mark.parametrize(
    ("text", "prefix"),
    [
        ("/lm", "/lm"),
        ("lm/", "/lm"),
        ("/a/b-c", "/a/b-c"),
        ("/me@x.org/p", "/me@x.org/p"),
        ("/me%40x.org", "/me@x.org"),
        ("", ""),
        ("/", ""),
    ],
)
def test_a_prefix_is_a_path(text: str, prefix: str) -> None:
    assert check_prefix(text) == prefix


@pytest.mark.parametrize("text", ["http://x/lm", "/a b", "/../x", '/"', "/%2e"])
def test_what_is_no_path_is_no_prefix(text: str) -> None:
    with pytest.raises(LmsearchError, match="--prefix takes a path"):
        check_prefix(text)


def test_below_a_prefix_requests_come_through_whether_a_proxy_strips_it_or_not(
    tmp_path: Path, prepared_sqlite: Path
) -> None:
    (tmp_path / "store.db").write_bytes(prepared_sqlite.read_bytes())
    with served(f"sqlite:///{tmp_path}/store.db", tmp_path / "log", "--prefix", "/lm") as server:
        assert "/lm/" in server.said
        for path in ("/lm/api/studies", "/api/studies"):
            assert server.ask(path).status == 200
        page, script = server.ask("/lm/dashboard"), server.ask("/lm/static/bundle.js", Accept_Encoding="gzip")
        assert b'src="/lm/static/bundle.js"' in page.body and int(page.headers["content-length"]) == len(page.body)
        assert b'url_prefix:"/lm/dashboard"' in script.body and "content-encoding" not in script.headers
        assert server.ask("/lm/").headers["location"].endswith("/lm/dashboard")
        assert server.ask("/lmx/api/studies").status == 404

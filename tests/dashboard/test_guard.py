"""The guard before optuna-dashboard: by itself as a WSGI application, and around the real server."""

import io
import json
import re
import shutil
import urllib.request
from collections.abc import Callable, Iterator
from http.cookiejar import CookieJar
from pathlib import Path
from typing import Any
from wsgiref.types import StartResponse, WSGIEnvironment
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

import optuna
import optuna_dashboard
import pytest

from lmsearch.dashboard import Guard, Rules
from lmsearch.dashboard.leases import REMOVING, count_leases
from lmsearch.errors import LmsearchError
from tests.conftest import Cli
from tests.dashboard.served import TOKEN, Answer, Served, listening_addresses, served
from tests.servers import Server
from tests.store.helpers import Bench

OWN = "127.0.0.1:8080"


def application(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
    """Answer everything, as optuna-dashboard does."""
    start_response("200 OK", [("Content-Type", "text/html"), ("Content-Security-Policy", "default-src 'self'")])
    return [b"within"]


def ask(
    rules: Rules,
    path: str = "/",
    method: str = "GET",
    query: str = "",
    host: str = OWN,
    scheme: str = "http",
    **headers: str,
) -> Answer:
    """Send one request to a guard; `Sec_Fetch_Site="none"` is the header of that name."""
    environ: dict[str, Any] = {
        "REQUEST_METHOD": method,
        "SCRIPT_NAME": "",
        "PATH_INFO": path,
        "QUERY_STRING": query,
        "HTTP_HOST": host,
        "wsgi.url_scheme": scheme,
        "wsgi.input": io.BytesIO(),
    }
    setup_testing_defaults(environ)
    environ |= {f"HTTP_{name.upper()}": value for name, value in headers.items()}
    answered: list[Any] = []

    def start(status: str, fields: list[tuple[str, str]], exc_info: Any = None) -> Any:
        answered[:] = [int(status[:3]), {name.lower(): value for name, value in fields}]
        return lambda data: None

    result = validator(Guard(application, rules))(environ, start)
    try:
        body = b"".join(result)
    finally:
        result.close()  # type: ignore[attr-defined]
    return Answer(status=answered[0], headers=answered[1], body=body)


def guarded_rules(**changes: Any) -> Rules:
    return Rules(**({"token": TOKEN} | changes))


def cookie_of(answer: Answer) -> str:
    return answer.headers["set-cookie"].partition(";")[0]


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.7", "search.example", "::", "127.0.0.1.search.example"])
def test_no_address_beyond_loopback_without_a_token(host: str) -> None:
    with pytest.raises(LmsearchError, match=r"does not listen on .* without a token.*LMSEARCH_DASHBOARD_TOKEN"):
        Rules(host=host)
    assert Rules(host=host, token=TOKEN).host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.0.0.9"])
def test_loopback_needs_no_token(host: str) -> None:
    assert Rules(host=host).token is None


@pytest.mark.parametrize(
    ("token", "word"), [("", "0 characters"), ("x" * 15, "15"), ("correct horse battery", "space"), ("ü" * 20, "ASCII")]
)
def test_a_token_that_is_guessed_or_cannot_be_sent_is_refused_and_not_repeated(token: str, word: str) -> None:
    with pytest.raises(LmsearchError, match=word) as refused:
        Rules(token=token)
    assert not token or token not in str(refused.value)
    assert TOKEN not in repr(guarded_rules())


@pytest.mark.parametrize("name", ["http://search.example", "search.example:80", "*", "", "a b"])
def test_an_allowed_name_is_a_name(name: str) -> None:
    with pytest.raises(LmsearchError, match="--allow-host takes a name"):
        Rules(allowed=(name,))


@pytest.mark.parametrize(
    ("host", "ours"),
    [
        ("127.0.0.1:8080", True),
        ("LocalHost:8080", True),
        ("[::1]:8080", True),
        ("127.0.0.1", False),
        ("127.0.0.1:8081", False),
        ("evil.example:8080", False),
        ("localhost.evil.example:8080", False),
        ("evil@localhost:8080", False),
        ("localhost:8080, evil.example", False),
        ("", False),
        ("search.example", True),
        ("search.example:443", True),
        ("0.0.0.0:8080", False),
    ],
)
def test_only_our_own_names_are_answered(host: str, ours: bool) -> None:
    rules = guarded_rules(host="0.0.0.0", allowed=("Search.Example",))
    answer = ask(rules, host=host, authorization=f"Bearer {TOKEN}")
    assert answer.status == (200 if ours else 421)
    assert ours or b"--allow-host" in answer.body


def test_the_bound_name_is_ours_and_port_80_goes_without_saying() -> None:
    assert guarded_rules(host="search.example").is_ours("search.example:8080")
    assert Rules(port=80).is_ours("localhost") and not Rules().is_ours("localhost")
    assert Rules(host="::1").is_ours("[::1]:8080") and Rules(host="::1").address == "http://[::1]:8080/"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer wrong-horse-battery-staple"},
        {"authorization": f"Basic {TOKEN}"},
        {"authorization": f"Bearer {TOKEN}x"},
        {"authorization": TOKEN},
        {"cookie": f"lmsearch-dashboard-8080={TOKEN}"},
        {"cookie": f"token={TOKEN}"},
    ],
)
def test_a_stranger_is_shown_how_to_become_a_visitor(headers: dict[str, str]) -> None:
    answer = ask(guarded_rules(), **headers)
    assert answer.status == 401 and answer.headers["www-authenticate"].startswith("Bearer")
    assert b"<form" in answer.body and b"within" not in answer.body
    assert answer.headers["cache-control"] == "no-store"
    api = ask(guarded_rules(), "/api/studies", **headers)
    assert api.status == 401 and "?token=" in api.reason


@pytest.mark.parametrize("words", [f"Bearer {TOKEN}", f"bearer   {TOKEN}"])
def test_a_script_shows_its_token_as_a_bearer(words: str) -> None:
    assert ask(guarded_rules(), authorization=words).body == b"within"
    assert ask(guarded_rules(), method="DELETE", authorization=words).body == b"within"


def test_a_first_visit_gets_a_cookie_that_is_not_the_token_and_a_url_without_it() -> None:
    answer = ask(guarded_rules(), "/dashboard/studies/1", query=f"a=%2F&token={TOKEN}&b=")
    assert (answer.status, answer.headers["location"]) == (303, "/dashboard/studies/1?a=%2F&b=")
    cookie = answer.headers["set-cookie"]
    assert set(cookie.split("; ")[1:]) == {"HttpOnly", "SameSite=Strict", "Path=/"}
    assert TOKEN not in cookie and TOKEN.encode() not in answer.body
    assert ask(guarded_rules(), cookie=f"other=1; {cookie_of(answer)}").body == b"within"
    another = guarded_rules(token="another-horse-battery-staple")
    assert ask(another, cookie=cookie_of(answer)).status == 401


def test_the_cookie_is_for_https_alone_where_a_proxy_speaks_it() -> None:
    assert ask(guarded_rules(), query=f"token={TOKEN}", scheme="https").headers["set-cookie"].endswith("; Secure")


def test_a_wrong_token_in_the_url_is_refused_whatever_else_is_shown() -> None:
    cookie = cookie_of(ask(guarded_rules(), query=f"token={TOKEN}"))
    refused = ask(guarded_rules(), query="token=wrong", cookie=cookie)
    assert refused.status == 401 and b"not the token" in refused.body


@pytest.mark.parametrize("path", ["//evil.example/", "/\\evil.example", "///evil.example"])
def test_a_first_visit_never_leads_to_another_host(path: str) -> None:
    location = ask(guarded_rules(), path, query=f"token={TOKEN}").headers["location"]
    assert re.match(r"/[^/\\]", location), location


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"sec_fetch_site": "same-origin"}, 200),
        ({"sec_fetch_site": "none"}, 200),
        ({"sec_fetch_site": "cross-site"}, 403),
        ({"sec_fetch_site": "same-site"}, 403),
        ({"sec_fetch_site": "cross-site", "origin": f"http://{OWN}"}, 403),
        ({"origin": f"http://{OWN}"}, 200),
        ({"origin": "http://127.0.0.1:9999"}, 403),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
    ],
)
@pytest.mark.parametrize("shown", ["cookie", "bearer", "nothing"])
def test_a_change_must_come_from_our_own_page(headers: dict[str, str], status: int, shown: str) -> None:
    rules = Rules() if shown == "nothing" else guarded_rules()
    proof = {
        "cookie": {"cookie": cookie_of(ask(guarded_rules(), query=f"token={TOKEN}"))},
        "bearer": {"authorization": f"Bearer {TOKEN}"},
        "nothing": {},
    }[shown]
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        assert ask(rules, method=method, **headers, **proof).status == status
    assert ask(rules, **headers, **proof).status == 200


def test_a_change_that_tells_nothing_of_its_origin_is_a_scripts_and_needs_no_cookie() -> None:
    cookie = cookie_of(ask(guarded_rules(), query=f"token={TOKEN}"))
    assert ask(guarded_rules(), method="POST", cookie=cookie).status == 403
    assert ask(guarded_rules(), method="POST", cookie=cookie, authorization=f"Bearer {TOKEN}").status == 200
    assert ask(Rules(), method="POST").status == 200


def test_read_only_refuses_every_change_in_a_sentence() -> None:
    rules = Rules(read_only=True)
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        answer = ask(rules, "/api/studies/1", method=method, sec_fetch_site="same-origin")
        assert answer.status == 403 and "read-only" in answer.reason
    assert [ask(rules, method=method).status for method in ("GET", "HEAD", "OPTIONS")] == [200, 200, 200]


def test_pages_cannot_be_framed_and_the_applications_own_policy_stays() -> None:
    headers = ask(Rules()).headers
    assert headers["content-security-policy"] == "default-src 'self'; frame-ancestors 'self'"
    assert (headers["x-frame-options"], headers["x-content-type-options"]) == ("SAMEORIGIN", "nosniff")
    assert ask(Rules(), host="evil.example").headers["content-security-policy"] == "frame-ancestors 'self'"
    assert ask(guarded_rules(), method="HEAD").body == b""


def test_no_route_of_optuna_dashboards_changes_anything_by_a_get() -> None:
    """The routes were read; a new version's that are others must be read again, since `--read-only` lets GET through."""
    routes = optuna_dashboard.wsgi(optuna.storages.InMemoryStorage()).routes  # type: ignore[attr-defined]
    assert {route.method for route in routes} == {"GET", "POST", "PUT", "DELETE"}
    assert {(route.method, route.rule) for route in routes} >= REMOVING
    assert {route.rule for route in routes if route.method == "GET"} == {
        "/",
        "/dashboard<:re:(/.*)?>",
        "/api/meta",
        "/api/studies",
        "/api/studies/<study_id:int>",
        "/api/studies/<study_id:int>/param_importances",
        "/api/studies/<study_id:int>/plot/<plot_type>",
        "/csv/<study_id:int>",
        "/favicon.ico",
        "/static/<filename:path>",
        "/incompatible-rdb-schema",
        "/artifacts/<study_id:int>/<artifact_id:re:[0-9a-fA-F-]+>",
        "/artifacts/<study_id:int>/<trial_id:int>/<artifact_id:re:[0-9a-fA-F-]+>",
    }


def test_a_lease_counts_while_it_lives(storage_url: str) -> None:
    bench = Bench(storage_url)
    bench.queue(2)
    assert count_leases(bench.storage, bench.ref.id) == 0
    bench.expire()
    bench.take()
    assert count_leases(bench.storage, bench.ref.id) == 0
    bench.storage.lease_seconds = 30.0
    ticket = bench.take()
    assert count_leases(bench.storage, bench.ref.id) == 1
    assert count_leases(bench.storage, bench.ref.id + 1) == 0
    bench.storage.release(ticket, None, None)
    assert count_leases(bench.storage, bench.ref.id) == 0


# The real command, the real server, real requests.


@pytest.fixture(scope="module")
def store(prepared_sqlite: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("store") / "store.db"
    shutil.copy(prepared_sqlite, path)
    return f"sqlite:///{path}"


@pytest.fixture(scope="module")
def bench(store: str) -> Bench:
    return Bench(store)


@pytest.fixture(scope="module")
def guarded(store: str, bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Serve a store with one study to who knows the token."""
    log = tmp_path_factory.mktemp("log") / "log"
    with served(store, log, "--allow-host", "search.example", LMSEARCH_DASHBOARD_TOKEN=TOKEN) as server:
        yield server
    assert TOKEN not in log.read_text()


def test_it_refuses_to_start_elsewhere_without_a_token(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("\n")
    for words, reason in (
        (("--host", "0.0.0.0"), "does not listen on 0.0.0.0 without a token"),
        (("--host", "0.0.0.0", "--token-file", "token"), "has 0 characters and needs 16"),
        (("--token-file", "nothing"), "nothing cannot be used"),
    ):
        said = cli("dashboard", *words)
        assert (said.returncode, said.stdout) == (2, "")
        assert said.stderr.startswith("lmsearch: ") and reason in said.stderr and said.stderr.count("\n") == 1


def test_it_says_how_to_visit_and_never_the_token(guarded: Served) -> None:
    assert guarded.said.startswith(f"http://127.0.0.1:{guarded.port}/?token=…  (Ctrl-C")
    assert listening_addresses(guarded.port) == {"0100007F"}


def test_strangers_and_foreign_names_are_refused_by_the_server(guarded: Served) -> None:
    assert guarded.ask("/dashboard").status == guarded.ask("/api/studies").status == 401
    assert guarded.ask("/api/studies/1", "DELETE").status == 401
    bearer = f"Bearer {TOKEN}"
    assert guarded.ask("/api/studies", Host="evil.example", Authorization=bearer).status == 421
    assert guarded.ask("/api/studies", Host="search.example", Authorization=bearer).status == 200


def test_a_browser_visits_with_the_token_once_and_then_with_its_cookie(guarded: Served) -> None:
    opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(CookieJar()))
    with opener.open(f"{guarded.origin}/?token={TOKEN}") as page:
        assert page.url == f"{guarded.origin}/dashboard"
        assert "frame-ancestors 'self'" in page.headers["Content-Security-Policy"]
        assert "script-src 'self'" in page.headers["Content-Security-Policy"]
    with opener.open(f"{guarded.origin}/api/studies") as answer:
        assert [study["study_name"] for study in json.load(answer)["study_summaries"]] == ["bench"]


def test_behind_a_proxy_that_speaks_https_the_cookie_is_secure(guarded: Served) -> None:
    answer = guarded.ask(f"/?token={TOKEN}", Host="search.example", X_Forwarded_Proto="https")
    assert (answer.status, answer.headers["location"]) == (303, "/")
    assert answer.headers["set-cookie"].endswith("; Secure")


def test_a_change_from_another_site_is_refused_by_the_server(guarded: Served) -> None:
    cookie = cookie_of(guarded.ask(f"/?token={TOKEN}"))
    new = {"study_name": "foreign", "directions": ["minimize"]}
    for headers in ({"Sec_Fetch_Site": "cross-site"}, {"Origin": "http://evil.example"}, {}):
        refused = guarded.ask("/api/studies", "POST", new, Cookie=cookie, **headers)
        assert refused.status == 403 and "own page" in refused.reason
    own = {"Cookie": cookie, "Sec_Fetch_Site": "same-origin", "Origin": guarded.origin}
    made = guarded.ask("/api/studies", "POST", new, **own)
    assert made.status == 201
    number = json.loads(made.body)["study_summary"]["study_id"]
    assert guarded.ask(f"/api/studies/{number}", "DELETE", {}, **own).status == 200


def test_a_study_is_neither_deleted_nor_renamed_while_somebody_works_on_it(guarded: Served, bench: Bench) -> None:
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    number = bench.ref.id
    bench.queue()
    ticket = bench.take()
    # Other spellings of the same route reach the same study.
    for path in (f"/api/studies/{number}", f"/api/studies/0{number}", f"/api/studies/{number}//"):
        refused = guarded.ask(path, "DELETE", {}, **bearer)
        assert refused.status == 409, path
        assert refused.reason == (
            "1 trial of bench is being worked on, so it is neither deleted nor renamed; "
            "stop it first with: lmsearch stop bench"
        )
    renaming = f"/api/studies/{number}/rename"
    assert guarded.ask(renaming, "POST", {"study_name": "other"}, **bearer).status == 409
    assert [study.study_name for study in bench.storage.get_all_studies()] == ["bench"]

    bench.storage.release(ticket, None, None)
    renamed = guarded.ask(renaming, "POST", {"study_name": "other"}, **bearer)
    assert renamed.status == 201
    assert [study.study_name for study in bench.storage.get_all_studies()] == ["other"]
    assert guarded.ask(f"/api/studies/{json.loads(renamed.body)['study_id']}", "DELETE", {}, **bearer).status == 200
    assert bench.storage.get_all_studies() == []


def test_read_only_and_without_a_token_on_loopback(storage_url: str, tmp_path: Path) -> None:
    bench = Bench(storage_url)
    with served(storage_url, tmp_path / "log", "--read-only") as server:
        assert "token" not in server.said
        assert listening_addresses(server.port) == {"0100007F"}
        assert server.ask("/api/studies").status == server.ask(f"/api/studies/{bench.ref.id}?after=0").status == 200
        for path, method in (("/api/studies", "POST"), (f"/api/studies/{bench.ref.id}", "DELETE")):
            refused = server.ask(path, method, {"study_name": "x", "directions": ["minimize"]})
            assert refused.status == 403 and "--read-only" in refused.reason
        assert server.ask("/api/studies", Host=f"evil.example:{server.port}").status == 421
    assert [study.study_name for study in bench.storage.get_all_studies()] == ["bench"]


def test_a_token_file_counts_on_loopback_too_and_a_port_in_use_is_named(
    store: str, guarded: Served, tmp_path: Path, cli: Cli
) -> None:
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    with served(store, tmp_path / "log", "--token-file", str(tmp_path / "token")) as server:
        assert server.ask("/api/studies").status == 401
        assert server.ask("/api/studies", Authorization=f"Bearer {TOKEN}").status == 200
    said = cli("dashboard", "--port", str(guarded.port), LMSEARCH_STORAGE=store)
    assert said.returncode == 2 and f"127.0.0.1 port {guarded.port} cannot be served: Address already" in said.stderr


@pytest.mark.slow
def test_it_waits_for_a_store_that_is_away_as_long_as_it_was_asked_and_outlives_it(
    start_server: Callable[..., Server], cli: Cli, tmp_path: Path
) -> None:
    server = start_server()
    patience = ("--store-timeout", "0.5s")
    with served(server.url, tmp_path / "log", *patience) as dashboard:
        assert dashboard.ask("/api/studies").status == 200
        server.stop()
        away = dashboard.ask("/api/studies")
        assert away.status == 503 and away.reason == "The store does not answer now."
        said = cli("dashboard", *patience, LMSEARCH_STORAGE=server.url)
        assert said.returncode == 75 and said.stderr.count("\n") == 1, said.stderr
        server.start()
        assert dashboard.ask("/api/studies").status == 200

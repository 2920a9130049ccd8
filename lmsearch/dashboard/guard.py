"""What stands between the network and optuna-dashboard, which asks nobody who they are.

Each request passes four questions, in this order: is the name it was sent to ours, is the visitor known, may anything
be changed here at all, and does the change come from our own page.
"""

import hashlib
import hmac
import html
import ipaddress
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from lmsearch.errors import LmsearchError

_SHORTEST_TOKEN = 16
_READS = ("GET", "HEAD", "OPTIONS")  # no route of optuna-dashboard's changes anything by these
_LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
_WILDCARDS = ("0.0.0.0", "::", "*")  # every address of the machine, and the name of none
_SANDBOX = "sandbox allow-scripts allow-downloads allow-modals allow-popups"  # with no origin: not ours
_FAMILIAR = ("same-origin", "none")  # Sec-Fetch-Site: our own page, or typed by a person

Headers = list[tuple[str, str]]


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Where the dashboard listens, who may visit it, and whether they may change anything.

    Raises `LmsearchError` for an address beyond this machine without a token, a token that is easily guessed, and
    an allowed name that no browser would send.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    token: str | None = field(default=None, repr=False)
    allowed: tuple[str, ...] = ()  # names, beside `host` and those of loopback, by which visitors may call it
    read_only: bool = False

    def __post_init__(self) -> None:
        if self.token is not None:
            _check_token(self.token)
        elif not _is_loopback(self.host):
            raise LmsearchError(
                f"the dashboard does not listen on {self.host} without a token, since it lets its visitors delete "
                f"studies; set LMSEARCH_DASHBOARD_TOKEN, name a --token-file, or leave out --host"
            )
        for name in self.allowed:
            if _split_host(name) is None or _split_host(name) != (_bare(name), None):
                raise LmsearchError(f"--allow-host takes a name such as search.example, without a port, not {name!r}")

    @property
    def cookie_name(self) -> str:
        """Return the name of the cookie; cookies of one host are shared between its ports."""
        return f"lmsearch-dashboard-{self.port}"

    @property
    def address(self) -> str:
        """Return a URL that a browser on this machine can open."""
        host = "127.0.0.1" if self.host in _WILDCARDS else self.host
        return f"http://[{host}]:{self.port}/" if ":" in host else f"http://{host}:{self.port}/"

    def is_ours(self, host_header: str) -> bool:
        """Whether a Host header names this server: another name may be anybody's, pointed here."""
        called = _split_host(host_header)
        if called is None:
            return False
        name, port = called
        if name in {_bare(allowed) for allowed in self.allowed}:
            return True  # whatever the port: a proxy or a tunnel listens on its own
        own = _LOOPBACK_NAMES | ({_bare(self.host)} - set(_WILDCARDS))
        return name in own and (80 if port is None else port) == self.port


def _check_token(token: str) -> None:
    make = 'make one with: python -c "import secrets; print(secrets.token_urlsafe())"'
    if len(token) < _SHORTEST_TOKEN:
        raise LmsearchError(
            f"the dashboard's token has {len(token)} characters and needs {_SHORTEST_TOKEN} or more; {make}"
        )
    if not token.isascii() or not token.isprintable() or " " in token:
        raise LmsearchError(f"the dashboard's token has a space or a character beyond ASCII; {make}")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(_bare(host)).is_loopback
    except ValueError:
        return host == "localhost"


def _bare(name: str) -> str:
    return name.lower().removeprefix("[").removesuffix("]")


def _split_host(text: str) -> tuple[str, int | None] | None:
    """Split `name:port`; None for what is no such thing."""
    match = re.fullmatch(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::([0-9]{1,5}))?", text.lower())
    return None if match is None else (_bare(match[1]), int(match[2]) if match[2] else None)


class Guard:
    """A WSGI application before another that answers only requests that keep to the rules."""

    def __init__(self, application: WSGIApplication, rules: Rules) -> None:
        self._application = application
        self._rules = rules

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request."""
        # A file of a study, such as its report, is opened in a page that can do nothing but show itself.
        is_file = environ.get("PATH_INFO", "").startswith("/artifacts/")
        reply = _Reply(environ, _hardening(start_response, _SANDBOX if is_file else ""))
        answer = self._answer(environ, reply)
        return self._application(environ, reply.start_response) if answer is None else answer

    def refusal(self, environ: WSGIEnvironment) -> tuple[str, Headers, bytes] | None:
        """Return status, headers and body that refuse a request by its headers alone; None where it passes."""
        responses: list[tuple[str, Headers]] = []

        def start(status: str, headers: Headers, exc_info: Any = None, /) -> Callable[[bytes], object]:
            responses.append((status, headers))
            return lambda data: None

        answer = self._answer(environ, _Reply(environ, _hardening(start)))
        return None if answer is None else (*responses[0], b"".join(answer))

    def _answer(self, environ: WSGIEnvironment, reply: "_Reply") -> Iterable[bytes] | None:
        """Answer a request that does not come through; None for one that does."""
        rules, host, method = self._rules, environ.get("HTTP_HOST", ""), environ["REQUEST_METHOD"]
        if not rules.is_ours(host):
            return reply.refuse(
                "421 Misdirected Request", f"This server is not called {host!r}; start it with --allow-host NAME."
            )
        offered = _offered_token(environ) if rules.token is not None and method == "GET" else None
        if offered is not None:
            return self._receive(offered, environ, reply)
        visitor = self._visitor(environ)
        if visitor is None:
            return reply.ask_for_token()
        if method not in _READS:
            if rules.read_only:
                return reply.refuse("403 Forbidden", "This dashboard is read-only: it was started with --read-only.")
            if not _is_own(environ, host, sure=visitor != "cookie"):
                return reply.refuse("403 Forbidden", "This change does not come from this dashboard's own page.")
        return None

    def _receive(self, offered: str, environ: WSGIEnvironment, reply: "_Reply") -> Iterable[bytes]:
        """Take the token from the URL of a first visit: give a cookie for it, and the URL without it."""
        token = self._rules.token
        if token is None or not _equal(offered, token):
            return reply.ask_for_token("That is not the token of this dashboard.")
        cookie = f"{self._rules.cookie_name}={_derive(token)}; HttpOnly; SameSite=Strict; Path=/"
        if environ["wsgi.url_scheme"] == "https":  # a proxy's X-Forwarded-Proto arrives here too
            cookie += "; Secure"
        return reply.send("303 See Other", "", [("Location", _without_token(environ)), ("Set-Cookie", cookie)])

    def _visitor(self, environ: WSGIEnvironment) -> str | None:
        """Return how a visitor is known: bearer, cookie, or anyone where no token is set; None for a stranger."""
        token = self._rules.token
        if token is None:
            return "anyone"
        scheme, _, credentials = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
        if scheme.lower() == "bearer" and _equal(credentials.strip(), token):
            return "bearer"
        shown = (part.strip().partition("=") for part in environ.get("HTTP_COOKIE", "").split(";"))
        expected = _derive(token)
        if any(name == self._rules.cookie_name and _equal(value, expected) for name, _, value in shown):
            return "cookie"
        return None


def _derive(token: str) -> str:
    # The cookie is not the token: who reads it from a browser's files cannot give it to a script as a bearer's.
    return hmac.new(token.encode(), b"the cookie of lmsearch dashboard", hashlib.sha256).hexdigest()


def _equal(received: str, expected: str) -> bool:
    return hmac.compare_digest(received.encode(), expected.encode())


def _offered_token(environ: WSGIEnvironment) -> str | None:
    return dict(parse_qsl(environ.get("QUERY_STRING", ""), keep_blank_values=True)).get("token")


def _without_token(environ: WSGIEnvironment) -> str:
    # One slash only: a Location that begins with two would name another host.
    path = "/" + environ.get("PATH_INFO", "").encode("latin-1").decode(errors="replace").lstrip("/")
    pairs = parse_qsl(environ.get("QUERY_STRING", ""), keep_blank_values=True)
    query = urlencode([(name, value) for name, value in pairs if name != "token"])
    return quote(path) + (f"?{query}" if query else "")


def _is_own(environ: WSGIEnvironment, host: str, *, sure: bool) -> bool:
    """Whether a change comes from our own page; `sure` says so where no header tells.

    Every browser of today sends Sec-Fetch-Site, and older ones send Origin with a change. Without both it is a
    script, which has no cookie but what it was given, and is `sure` unless it shows one.
    """
    site, origin = environ.get("HTTP_SEC_FETCH_SITE"), environ.get("HTTP_ORIGIN")
    if site is not None:
        return site in _FAMILIAR
    if origin is not None:
        return origin.lower() in (f"http://{host.lower()}", f"https://{host.lower()}")
    return sure


@dataclass(frozen=True)
class _Reply:
    """How the guard itself answers a request: as JSON where the page's scripts ask, else as a short page."""

    environ: WSGIEnvironment
    start_response: StartResponse

    def send(self, status: str, body: str, headers: Headers, kind: str = "text/plain") -> list[bytes]:
        """Send one answer that nobody may keep."""
        data = body.encode()
        own = [("Content-Type", f"{kind}; charset=utf-8"), ("Content-Length", str(len(data)))]
        self.start_response(status, [*own, ("Cache-Control", "no-store"), *headers])
        return [] if self.environ["REQUEST_METHOD"] == "HEAD" else [data]

    def refuse(self, status: str, sentence: str, headers: Headers | None = None) -> list[bytes]:
        """Refuse in one sentence, where the page's scripts look for it."""
        if self.environ.get("PATH_INFO", "").startswith("/api/"):
            return self.send(status, json.dumps({"reason": sentence}), headers or [], "application/json")
        return self.send(status, f"{sentence}\n", headers or [])

    def ask_for_token(self, why: str = "This dashboard needs a token.") -> list[bytes]:
        """Refuse a stranger, with how to become a visitor."""
        status, challenge = "401 Unauthorized", ("WWW-Authenticate", 'Bearer realm="lmsearch dashboard"')
        sentence = f"{why} Show it as ?token=… in the URL, or in an Authorization: Bearer … header."
        if self.environ["REQUEST_METHOD"] not in _READS or self.environ.get("PATH_INFO", "").startswith("/api/"):
            return self.refuse(status, sentence, [challenge])
        policy = ("Content-Security-Policy", "default-src 'none'; form-action 'self'; frame-ancestors 'none'")
        return self.send(status, _ASKING.format(html.escape(why)), [challenge, policy], "text/html")


# The link is for who followed one from another site: a browser does not show a strict cookie on that first step.
_ASKING = """<!doctype html>
<html lang="en"><title>lmsearch dashboard</title>
<p>{} The person who started it has it.</p>
<form method="get" action="/"><label>Token <input name="token" type="password" required autofocus></label>
<button>Open</button></form>
<p>If you have shown it before: <a href="/">continue</a>.</p>
"""


def _hardening(start_response: StartResponse, policy: str = "") -> StartResponse:
    """Return a `start_response` that adds a policy, and the headers against framing, sniffing and leaking URLs."""
    own = [("Content-Security-Policy", policy)] if policy else []

    def start(status: str, headers: Headers, exc_info: Any = None, /) -> Callable[[bytes], object]:
        return start_response(status, _hardened([*headers, *own]), exc_info)

    return start


def _hardened(headers: Headers) -> Headers:
    policy = "; ".join(value for name, value in headers if name.lower() == "content-security-policy")
    if "frame-ancestors" not in policy:
        policy = f"{policy}; frame-ancestors 'self'".removeprefix("; ")
    kept = [header for header in headers if header[0].lower() != "content-security-policy"]
    there = {name.lower() for name, _ in kept}
    wanted = [
        ("X-Frame-Options", "SAMEORIGIN"),
        ("X-Content-Type-Options", "nosniff"),
        # Not no-referrer, which makes browsers send `Origin: null` with a change of our own page.
        ("Referrer-Policy", "same-origin"),
    ]
    return [*kept, ("Content-Security-Policy", policy), *(pair for pair in wanted if pair[0].lower() not in there)]

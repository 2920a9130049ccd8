"""The dashboard below a path of another site: behind nginx, JupyterHub or Open OnDemand.

optuna-dashboard's page names its own paths from the root. What it asks for is named below the prefix instead, in the
two files that say so; a version in which they do not say it as expected is refused at the start.
"""

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

import optuna_dashboard

from lmsearch.errors import LmsearchError

_FILES = {
    "index.html": ((b'src="/static/', b'src="%s/static/'),),
    "public/bundle.js": (
        (b'url_prefix:"/dashboard"', b'url_prefix:"%s/dashboard"'),
        (b"`${this.baseURL}/api/", b"`%s/api/"),
        (b"`/artifacts/", b"`%s/artifacts/"),
        (b"`/csv/", b"`%s/csv/"),
    ),
}
"""The files of the page, and how each names a path from the root, and below a prefix."""

Headers = list[tuple[str, str]]


def check_prefix(prefix: str) -> str:
    """Return a prefix as `/lm`, without a slash at its end; raises `LmsearchError` for what is none.

    `@` and `+` may be in it, also as `%40` and `%2B`: JupyterHub names users by their addresses.
    """
    bare = unquote("/" + prefix.strip("/"))
    if bare == "/":
        return ""
    if not re.fullmatch(r"(/[A-Za-z0-9_~.@+-]+)+", bare) or {".", ".."} & set(bare.split("/")):
        raise LmsearchError(f"--prefix takes a path such as /lm, not {prefix!r}")
    return bare


class Prefixed:
    """A WSGI application before another that is called below a prefix, whether a proxy takes that off or not."""

    def __init__(self, application: WSGIApplication, prefix: str) -> None:
        self._application = application
        self._prefix = prefix
        self._page, self._script = (_below(name, changes, prefix) for name, changes in _FILES.items())

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request."""
        path = environ.get("PATH_INFO", "")
        if path == self._prefix or path.startswith(f"{self._prefix}/"):
            environ["PATH_INFO"] = path.removeprefix(self._prefix) or "/"
        path = environ["PATH_INFO"].rstrip("/")
        environ["HTTP_ACCEPT_ENCODING"] = "identity"  # the page's files are changed on their way
        response: list[Any] = []

        def start(status: str, headers: Headers, exc_info: Any = None, /) -> Callable[[bytes], object]:
            response[:] = [status, [(name, self._below_prefix(name, value)) for name, value in headers], exc_info]
            return lambda data: None

        answer = self._application(environ, start)
        status, headers, exc_info = response
        kind = {name.lower(): value for name, value in headers}.get("content-type", "")
        changed = None
        if status.startswith("200") and path == "/static/bundle.js":
            changed = self._script
        elif status.startswith("200") and path.startswith("/dashboard") and kind.startswith("text/html"):
            changed = self._page
        elif status.startswith("401") and kind.startswith("text/html"):  # the guard's own page
            changed = re.sub(rb'(action|href)="/"', rb'\1="%s/"' % self._prefix.encode(), b"".join(answer))
        if changed is None:
            start_response(status, headers, exc_info)
            return answer
        if close := getattr(answer, "close", None):
            close()
        kept = [(name, value) for name, value in headers if name.lower() not in ("content-length", "etag")]
        start_response(status, [*kept, ("Content-Length", str(len(changed)))])
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [changed]

    def _below_prefix(self, name: str, value: str) -> str:
        """Put a location of ours, or a cookie's path, below the prefix."""
        if name.lower() == "location":
            return re.sub(r"^(https?://[^/]+)?/", lambda found: f"{found[1] or ''}{self._prefix}/", value)
        return value.replace("Path=/", f"Path={self._prefix}/") if name.lower() == "set-cookie" else value


def _below(name: str, changes: tuple[tuple[bytes, bytes], ...], prefix: str) -> bytes:
    content = (Path(str(optuna_dashboard.__file__)).parent / name).read_bytes()
    for url_path, below in changes:
        if url_path not in content:
            raise LmsearchError("this version of optuna-dashboard cannot be served below a --prefix")
        content = content.replace(url_path, below % prefix.encode())
    return content

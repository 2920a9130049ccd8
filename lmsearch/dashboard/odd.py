"""Requests that no page of ours sends, answered before optuna-dashboard, which answers them with a traceback."""

import io
import json
import re
from collections.abc import Iterable
from urllib.parse import parse_qs
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from lmsearch.errors import LmsearchError
from lmsearch.folders import check_new_name

_LARGEST_NUMBER = 18  # digits: SQL's whole numbers


class OddRequests:
    """A WSGI application before another that answers what is malformed with a status of 400 or 404."""

    def __init__(self, application: WSGIApplication) -> None:
        self._application = application

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request."""
        wrong = _wrong(environ)
        if wrong is None:
            return self._application(environ, start_response)
        status, sentence = wrong
        body = json.dumps({"reason": sentence}).encode()
        start_response(status, [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
        return [body]


def _wrong(environ: WSGIEnvironment) -> tuple[str, str] | None:
    """Return the status and a sentence for what is wrong with a request, None where nothing is."""
    path = environ.get("PATH_INFO", "")
    parts = path.rstrip("/").split("/")[1:]
    if ".." in parts or "." in parts or "\0" in path or "" in parts:
        return "404 Not Found", "There is no such page."
    if any(len(number) > _LARGEST_NUMBER for number in re.findall(r"\d+", path)):
        return "404 Not Found", "There is no such study or trial."
    after = parse_qs(environ.get("QUERY_STRING", ""), keep_blank_values=True).get("after", ["0"])
    if path.startswith("/api/") and not all(re.fullmatch(r"\d{1,9}", one, re.ASCII) for one in after):
        return "400 Bad Request", "after is the number of a trial."
    if path.startswith("/api/") and environ["REQUEST_METHOD"] in ("POST", "PUT", "PATCH"):
        return _wrong_body(environ)
    return None


def _wrong_body(environ: WSGIEnvironment) -> tuple[str, str] | None:
    body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    environ["wsgi.input"] = io.BytesIO(body)
    if not body:
        return None
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return "400 Bad Request", "The body is not JSON."
    if not isinstance(document, dict):
        return "400 Bad Request", "The body is no JSON object."
    path = environ.get("PATH_INFO", "").rstrip("/")
    if path != "/api/studies" and not path.endswith("/rename"):
        return None
    name = document.get("study_name")
    try:
        check_new_name(name if isinstance(name, str) else "")
    except LmsearchError as error:
        return "400 Bad Request", str(error)
    return None

"""What optuna-dashboard answers to requests that nobody's page sends, and to a download of trials.

Its own views answer an odd value with a traceback in the log and status 500; here it is the visitor's mistake. Its
tables are opened in spreadsheets, where a cell that begins with `=` is a formula.
"""

import csv
import functools
import io
import json
import logging
from collections.abc import Callable
from typing import Any

import bottle
from optuna.exceptions import UpdateFinishedTrialError

from lmsearch.errors import LmsearchError, StoreGoneError
from lmsearch.escapes import cell

_log = logging.getLogger(__name__)

_FOR_PROGRAMS = frozenset({"lmsearch", "model"})
"""Attributes that say nothing to a person: a study's whole file as JSON, and where a model's weights lie."""

_ODD = (TypeError, ValueError, AttributeError, AssertionError, OverflowError, IndexError)
"""What a view of optuna-dashboard raises for a value of another kind than its page sends."""


class Answers:
    """A plugin in Bottle's sense, to be installed last: it replaces what stands directly around the views."""

    name, api = "answers", 2

    def __init__(self, prefix: str = "") -> None:
        self._prefix = prefix

    def apply(self, callback: Callable[..., Any], route: bottle.Route) -> Callable[..., Any]:
        """Return the function that answers a route from now on."""
        if route.rule.startswith("/csv/"):
            return _without_formulas(callback)
        view = getattr(callback, "__wrapped__", None)
        if view is not None and (route.method, route.rule) == ("GET", "/api/studies/<study_id:int>"):
            view = _readable(view, self._prefix)
        return callback if view is None or not route.rule.startswith("/api/") else _answering(view)


def _readable(view: Callable[..., Any], prefix: str) -> Callable[..., Any]:
    """Leave out what we store for programs, and put the note's links to files of the study below a prefix."""

    @functools.wraps(view)
    def answer(*arguments: Any, **named: Any) -> Any:
        document = view(*arguments, **named)
        if not isinstance(document, dict):
            return document
        for owner in (document, *document.get("trials", ()), *document.get("best_trials", ())):
            owner["user_attrs"] = [one for one in owner.get("user_attrs", ()) if one["key"] not in _FOR_PROGRAMS]
        document["union_user_attrs"] = [
            one for one in document.get("union_user_attrs", ()) if one["key"] not in _FOR_PROGRAMS
        ]
        note = document.get("note")
        if isinstance(note, dict) and prefix:
            note["body"] = str(note.get("body", "")).replace("](/artifacts/", f"]({prefix}/artifacts/")
        return document

    return answer


def _answering(view: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(view)
    def answer(*arguments: Any, **named: Any) -> Any:
        bottle.response.content_type = "application/json"
        try:
            return view(*arguments, **named)
        except Exception as error:
            refusal = _refusal(error)
            if refusal is None:
                raise
            bottle.response.status, sentence = refusal
            _log.debug("a request was refused: %r", error, extra={"event": "refused"})
            return json.dumps({"reason": sentence})

    return answer


def _refusal(error: Exception) -> tuple[int, str] | None:
    """Return the status and the sentence for what a view raised; None where it is not the visitor's mistake."""
    match error:
        case bottle.HTTPError():
            found = error.status_code, str(error.body)
        case KeyError():
            found = 404, "There is no such study or trial, or the body lacks a value."
        case UpdateFinishedTrialError():
            found = 409, "The trial has ended."
        case StoreGoneError():
            _log.warning("%s", error, extra={"event": "waiting_for_store"})
            found = 503, "The store does not answer now."
        case LmsearchError():
            found = 400, str(error)
        case _ if isinstance(error, _ODD) and (bottle.request.method != "GET" or bottle.request.query_string):
            found = 400, "A value of the request is not of the kind that is needed."
        case _:
            return None
    return found


def _without_formulas(callback: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(callback)
    def answer(*arguments: Any, **named: Any) -> Any:
        text = callback(*arguments, **named)
        if not isinstance(text, str):
            return text
        written = io.StringIO()
        rows = csv.reader(io.StringIO(text, newline=""))
        csv.writer(written).writerows([[cell(value) for value in row] for row in rows])
        disposition = bottle.response.get_header("Content-Disposition", "")
        bottle.response.set_header("Content-Disposition", disposition.encode("ascii", "ignore").decode())
        return written.getvalue()

    return answer

"""Waitress's channels with our guard at the end of the headers, and room for visitors beside idle connections."""

import threading
from typing import Any

from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser

from lmsearch.dashboard.guard import Guard

CONNECTIONS = 200
_MADE_ROOM = 10  # connections that are closed at once where there are too many
LARGEST_BODY = 4 << 20  # bytes: notes are the longest that a visitor sends


class _Refusal:
    """What the guard answers to a request whose body nobody has read."""

    def __init__(self, status: str, headers: list[tuple[str, str]], body: bytes) -> None:
        self._answer = status, headers, body

    def to_response(self, ident: str | None) -> tuple[str, list[tuple[str, str]], bytes]:
        """Return status, headers and body, as waitress asks for them."""
        status, headers, body = self._answer
        return status, [header for header in headers if header[0].lower() != "content-length"], body


def make_channel(guard: Guard) -> type[HTTPChannel]:
    """Return the class of a server's channels: a request with a body is judged by its headers, before that is read."""

    class GuardedParser(HTTPRequestParser):  # type: ignore[misc]
        def parse_header(self, header_plus: bytes) -> None:
            super().parse_header(header_plus)
            parser: Any = self
            if parser.body_rcv is None and not parser.content_length:
                return
            refusal = guard.refusal(_environ(parser))
            if refusal is not None:
                parser.error = _Refusal(*refusal)
                parser.body_rcv, parser.content_length = None, 0

    class Channel(HTTPChannel):  # type: ignore[misc]
        parser_class = GuardedParser

        def __init__(self, server: Any, *args: Any, **kwargs: Any) -> None:
            super().__init__(server, *args, **kwargs)
            _make_room(server, self)

    return Channel


_room_lock = threading.Lock()


def _make_room(server: Any, newest: HTTPChannel) -> None:
    """Close the connections that have been idle the longest, where so many are open that others could not be."""
    with _room_lock:
        if len(server.active_channels) < CONNECTIONS - _MADE_ROOM:
            return
        idle = [one for one in list(server.active_channels.values()) if one is not newest and not one.requests]
        for one in sorted(idle, key=lambda one: one.last_activity)[:_MADE_ROOM]:
            one.will_close = True


def _environ(parser: HTTPRequestParser) -> dict[str, Any]:
    headers = {f"HTTP_{name}": value for name, value in parser.headers.items()}
    return headers | {
        "REQUEST_METHOD": parser.command,
        "PATH_INFO": parser.path,
        "QUERY_STRING": parser.query or "",
        "wsgi.url_scheme": "http",
    }

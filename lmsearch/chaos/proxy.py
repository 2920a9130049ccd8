"""A TCP proxy before a PostgreSQL that can make a network fail in the ways that networks do.

`lmsearch chaos` puts it between its own workers and a server that it did not start, and so do the tests.
"""

import contextlib
import socket
import threading
import time
from enum import Enum

from sqlalchemy.engine import URL

Address = tuple[str, int] | str
"""A host and a port, or the path of a Unix socket."""

_CHUNK = 65_536
_COMMIT = b"COMMIT"


class Mode(Enum):
    """What the proxy does with what it is sent."""

    FORWARD = "forward"
    REFUSE = "refuse"  # ends every connection, as a server that is down
    SWALLOW = "swallow"  # acknowledges and never answers: a half-open connection


class Proxy:
    """Listens on the loopback address and forwards to one server."""

    def __init__(self, server: Address) -> None:
        self.server = server
        self.mode = Mode.FORWARD
        self.delay = 0.0  # seconds, for each chunk in each direction
        self.commits_to_cut = 0  # of the next commits: done by the server, their answers lost with the connection
        self.commits_cut = 0
        self._lock = threading.Lock()
        self._live: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, name="proxy", daemon=True).start()

    def close(self) -> None:
        """Stop listening and end every connection."""
        self.mode = Mode.REFUSE
        # A thread that sleeps in accept() does not wake when its socket is closed, but when it is shut.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def cut(self) -> None:
        """End every connection that there is now."""
        with self._lock:
            for end in self._live:
                _shut(end)

    def url(self, direct: URL) -> URL:
        """Return the URL by which the server's database is reached through the proxy."""
        query = {name: value for name, value in direct.query.items() if name not in ("host", "port")}
        return direct.set(host="127.0.0.1", port=self.port, query=query)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return  # closed
            threading.Thread(target=self._serve, args=(client,), name="proxied", daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        if self.mode is Mode.REFUSE:
            client.close()
            return
        try:
            server = _connect(self.server)
        except OSError:
            client.close()
            return
        answers_lost = threading.Event()
        with self._lock:
            self._live |= {client, server}
        back = threading.Thread(
            target=self._pump, args=(server, client, answers_lost, False), name="proxied", daemon=True
        )
        back.start()
        self._pump(client, server, answers_lost, True)
        back.join()
        with self._lock:
            self._live -= {client, server}
        client.close()
        server.close()

    def _pump(self, source: socket.socket, sink: socket.socket, answers_lost: threading.Event, asks: bool) -> None:
        with contextlib.suppress(OSError):
            while chunk := source.recv(_CHUNK):
                if self.mode is Mode.REFUSE or (answers_lost.is_set() and not asks):
                    break
                if self.mode is Mode.SWALLOW:
                    continue
                if self.delay:
                    time.sleep(self.delay)
                if asks and _COMMIT in chunk:
                    self._maybe_cut(answers_lost)
                sink.sendall(chunk)
        _shut(source)
        _shut(sink)

    def _maybe_cut(self, answers_lost: threading.Event) -> None:
        with self._lock:
            if self.commits_to_cut > 0:
                self.commits_to_cut -= 1
                self.commits_cut += 1
                answers_lost.set()


def server_address(url: URL) -> Address:
    """Return where the server of a PostgreSQL URL listens."""
    host = str(url.query.get("host") or url.host or "127.0.0.1")
    port = int(str(url.query.get("port") or url.port or 5432))
    return f"{host}/.s.PGSQL.{port}" if host.startswith("/") else (host, port)


def _connect(address: Address) -> socket.socket:
    if isinstance(address, str):
        end = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        end.connect(address)
        return end
    return socket.create_connection(address, timeout=None)


def _shut(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)

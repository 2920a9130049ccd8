"""The dashboard as a person starts it, in a process of its own, and requests as a browser or a script sends them."""

import contextlib
import http.client
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TOKEN = "correct-horse-battery-staple"


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What came back."""

    status: int
    headers: Mapping[str, str]  # their names in lower case
    body: bytes

    @property
    def reason(self) -> str:
        reason: str = json.loads(self.body)["reason"]
        return reason


@dataclass(frozen=True, kw_only=True)
class Served:
    """A dashboard that listens."""

    port: int
    said: str

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(self, path: str, method: str = "GET", document: Any = None, **headers: str) -> Answer:
        """Send one request; `Sec_Fetch_Site="none"` is the header of that name."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        body = None if document is None else json.dumps(document)
        if body is not None:
            named["Content-Type"] = "application/json"
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            connection.request(method, path, body, named)
            answer = connection.getresponse()
            fields = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(status=answer.status, headers=fields, body=answer.read())


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


@contextlib.contextmanager
def served(url: str, log: Path, *words: str, **environment: str) -> Iterator[Served]:
    """Serve a store until the end of the block; what the server says goes to the file `log`."""
    port = free_port()
    command = [sys.executable, "-m", "lmsearch.cli.main", "dashboard", "--port", str(port), *words]
    with log.open("w", encoding="utf-8") as output:
        server = subprocess.Popen(
            command,
            env=dict(os.environ) | {"LMSEARCH_STORAGE": url, "PYTHONUNBUFFERED": "1"} | environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        end = time.monotonic() + 60
        while (line := re.search(r"http.*\n", log.read_text(encoding="utf-8"))) is None:
            assert server.poll() is None and time.monotonic() < end, log.read_text(encoding="utf-8")
            time.sleep(0.05)
        yield Served(port=port, said=line[0])
    finally:
        server.terminate()
        server.wait(timeout=30)


def listening_addresses(port: int) -> set[str]:
    """Give the local addresses, as the kernel writes them, that somebody listens on at a port."""
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text(encoding="utf-8").splitlines()[1:]:
            address, _, hexadecimal = line.split()[1].partition(":")
            if line.split()[3] == "0A" and int(hexadecimal, 16) == port:
                found.add(address)
    return found

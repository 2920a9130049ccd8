"""`lmsearch run --notify`, by the real Apprise to a server of this test."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Cli
from tests.factories import TINY_STUDY, write_study

pytestmark = pytest.mark.heavy
RUN = ("run", "tiny.toml", "--workers", "1", "--quiet")


class Inbox:
    """What was posted to a local server."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        messages = self.messages

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                messages.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *args: Any) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"json://127.0.0.1:{self.server.server_port}/"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def titles(self) -> list[str]:
        return [message["title"] for message in self.messages]


@pytest.fixture
def inbox() -> Iterator[Inbox]:
    pytest.importorskip("apprise", reason="no notification was sent: pip install 'lmsearch[notify]'")
    opened = Inbox()
    yield opened
    opened.server.shutdown()
    opened.server.server_close()


def test_the_first_trial_and_the_end_are_told_once(inbox: Inbox, cli: Cli, tmp_path: Path) -> None:
    write_study(tmp_path)
    assert cli(*RUN, "--notify", inbox.url).returncode == 0
    assert inbox.titles() == ["lmsearch tiny: the first trial has ended", "lmsearch tiny: finished"]
    assert "tiny: 3 of 3 trials, 3 complete, best " in inbox.messages[1]["message"]
    assert cli(*RUN, "--more", "1", LMSEARCH_NOTIFY=inbox.url).returncode == 0  # its first trial was long ago
    assert inbox.titles()[2:] == ["lmsearch tiny: finished"]


def test_trouble_is_told_with_what_ended_the_search(inbox: Inbox, cli: Cli, tmp_path: Path) -> None:
    far = TINY_STUDY.replace("low = 1e-3, high = 1e-1, log = true, grid = [0.01]", "low = 900.0, high = 999.0")
    write_study(tmp_path, far + 'optimizer = "sgd"\nclip_norm = 0.0\n')
    assert cli(*RUN, "--notify", inbox.url).returncode == 1
    assert inbox.titles()[-2:] == ["lmsearch tiny: the first trial has ended", "lmsearch tiny: trouble"]
    assert inbox.messages[-1]["message"].startswith("all 3 trials of tiny diverged")


def test_a_notification_that_fails_costs_nothing(inbox: Inbox, cli: Cli, tmp_path: Path) -> None:
    write_study(tmp_path)
    inbox.server.server_close()  # nobody answers there
    said = cli(*RUN, "--notify", inbox.url.replace("127.0.0.1", "me:hunter2@127.0.0.1"))
    assert said.returncode == 0 and said.stderr.count("a notification could not be sent; the search goes on") == 1
    assert "hunter2" not in said.stdout + said.stderr
    kept = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert kept and not [path for path in kept if b"hunter2" in path.read_bytes()]


def test_a_url_that_is_none_is_refused_before_anything_starts(inbox: Inbox, cli: Cli, tmp_path: Path) -> None:
    write_study(tmp_path)
    said = cli(*RUN, "--notify", "nonsense://secret")
    assert said.returncode == 2
    assert said.stderr == "lmsearch: the URL of --notify is none that Apprise knows (nonsense://…)\n"
    assert not (tmp_path / "runs").exists()

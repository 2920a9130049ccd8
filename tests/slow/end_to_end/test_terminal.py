"""What others wrote reaches a terminal shown and not obeyed, and a standard output of any kind costs no search."""

import csv
import io
import json
import os
import pty
import shlex
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from lmsearch.cli.main import main
from lmsearch.errors import ConfigError
from lmsearch.escapes import cell, is_plain, shown, shown_lines
from lmsearch.folders import check_new_name
from tests.factories import TINY_STUDY

TITLE, CLIPBOARD, CLEAR, RIGHT = "\x1b]0;pwned\x07", "\x1b]52;c;cHduZWQ=\x07", "\x1b[2J", "\u202egnirts"
EVIL = f"evil {TITLE}\x1b[31m\nnext\u202e"
LMSEARCH = [sys.executable, "-m", "lmsearch.cli.main"]


@dataclass(frozen=True)
class Site:
    folder: Path

    def environment(self, **more: str) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("LC_") and name != "LANG"}
        return kept | {"LMSEARCH_CACHE": str(self.folder / "cache"), "TERM": "xterm", "LC_ALL": "C.UTF-8"} | more

    def in_terminal(self, *words: str, **more: str) -> tuple[int, str]:
        """Run a command in a pseudo-terminal, and give its exit code and all that the terminal got."""
        ours, theirs = pty.openpty()
        with subprocess.Popen(
            [*LMSEARCH, *words],
            cwd=self.folder,
            env=self.environment(**more),
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        ) as process:
            os.close(theirs)
            said = b""
            while True:
                try:
                    part = os.read(ours, 1 << 16)
                except OSError:  # the terminal is closed
                    break
                if not part:
                    break
                said += part
            os.close(ours)
            return process.wait(60), said.decode(errors="replace")

    def shell(self, text: str, **more: str) -> "subprocess.CompletedProcess[bytes]":
        """Run a command line of bash, in which `lmsearch` is ours."""
        head = f'set -o pipefail; lmsearch() {{ {shlex.join(LMSEARCH)} "$@"; }}; '
        return subprocess.run(
            ["bash", "-c", head + text], cwd=self.folder, env=self.environment(**more), capture_output=True, timeout=120,
            check=False,
        )  # fmt: skip


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A folder with a study on a hostile text, whose name in the store somebody has made hostile too."""
    folder = tmp_path_factory.mktemp("site")
    words = ["red", "green", f"a{CLIPBOARD}", f"b{CLEAR}", RIGHT, "blue"]
    text = "".join(" ".join(words[(line * column) % 6] for column in range(1, 9)) + "\n" for line in range(400))
    (folder / "text.txt").write_text(text, encoding="utf-8")
    study = TINY_STUDY.replace('"corpus"', '"text.txt"').replace("trials = 3", "trials = 1")
    (folder / "tiny.toml").write_text(study)
    found = Site(folder)
    ran = found.shell("lmsearch run tiny.toml --workers 1")
    assert ran.returncode == 0, ran.stderr
    copy = sqlite3.connect(folder / "evil.db")
    with sqlite3.connect(folder / "runs/lmsearch.db") as store:
        store.backup(copy)
    copy.execute("UPDATE studies SET study_name = ?", (EVIL,))
    reason = json.dumps(f"=1+1 {TITLE}")
    copy.execute("INSERT INTO trial_user_attributes (trial_id, key, value_json) VALUES (1, 'reason', ?)", (reason,))
    copy.commit()
    copy.close()
    yield found


def obeyed(said: str) -> list[str]:
    """Give what of the hostile texts a terminal would have obeyed."""
    return [mark for mark in (TITLE, CLIPBOARD, CLEAR, "\x1b[31m", "\u202e", "\nnext") if mark in said]


def test_a_hostile_name_is_shown_by_every_command_that_looks(site: Site) -> None:
    store = ("--storage", "sqlite:///evil.db")
    for words in (["status", EVIL], ["show", EVIL, "0"], ["trials", EVIL], ["best", f"no {EVIL}"], ["doctor"],
                  ["compare", EVIL]):  # fmt: skip
        code, said = site.in_terminal(*words, *store)
        assert "Traceback" not in said and code in (0, 1, 2), said
        assert obeyed(said.replace("\r\n", "\n")) == [], words
    code, said = site.in_terminal("studies", *store)
    assert code == 0 and r"evil \x1b]0;pwned\x07\x1b[31m\x0anext\u202e: 1 of 1 trials" in said


def test_hostile_words_of_a_text_and_a_model_are_shown(site: Site) -> None:
    for words in (["data", "show", "text.txt"], ["show", "tiny", "0"], ["predict", "tiny", f"{TITLE}.npz"],
                  ["generate", "tiny", "--words", "300", "--prompt", f"red {CLEAR}"]):  # fmt: skip
        _, said = site.in_terminal(*words)
        assert obeyed(said) == [] and "Traceback" not in said, words
    assert r"a\x1b]52;c;cHduZWQ=\x07" in said and r"b\x1b[2J" in said


def test_what_goes_into_a_file_is_what_the_model_wrote(site: Site) -> None:
    ran = site.shell("lmsearch generate tiny --words 300 > written.txt && lmsearch evaluate tiny --text written.txt")
    assert ran.returncode == 0, ran.stderr
    written = (site.folder / "written.txt").read_text(encoding="utf-8")
    assert CLIPBOARD in written and CLEAR in written
    assert b"unknown words" not in ran.stdout


def test_a_table_for_a_spreadsheet_has_no_formula_of_others(site: Site) -> None:
    ran = site.shell('lmsearch report "$NAME" --format csv --storage sqlite:///evil.db', NAME=EVIL)
    assert ran.returncode == 0, ran.stderr
    rows = list(csv.DictReader(io.StringIO(ran.stdout.decode())))
    assert rows and all(row["reason"].startswith("'=1+1") for row in rows)
    assert [cell(value) for value in ("=x", "+x", "-x", "@x", "\tx", "x=", "", -1.5, None)] == [
        "'=x", "'+x", "'-x", "'@x", "'\tx", "x=", "", -1.5, None,
    ]  # fmt: skip


@pytest.mark.parametrize("name", [EVIL, "a\tb", "a\x9bb", "a\u2066b", "a\udcffb", "\x7f"])
def test_names_that_do_not_show_as_they_are_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="a study cannot be called"):
        check_new_name(name)
    for plain in ("naïve study", "日本", "👩‍🔬", "100%", "$HOME", "a'b"):
        check_new_name(plain)
        assert is_plain(plain) and shown(plain) == plain


def test_run_refuses_such_a_name_and_begins_nothing(site: Site) -> None:
    ran = site.shell('lmsearch run tiny.toml --name "$NAME" --storage sqlite:///new.db', NAME=EVIL)
    assert ran.returncode == 2 and b"a study cannot be called" in ran.stderr and b"\x1b" not in ran.stderr
    assert not (site.folder / "new.db").exists()


def test_lines_stay_and_everything_else_is_escaped() -> None:
    assert shown_lines("a\n\tb\x1b\x85") == "a\n\tb\\x1b\\x85" and shown("a\n\tb") == "a\\x0a\\x09b"


# Standard output of any kind.


def test_a_terminal_without_a_character_shows_a_question_mark(site: Site) -> None:
    for encoding, words in (("latin-1", ["run", "--help"]), ("ascii", ["show", "tiny", "0"])):
        code, said = site.in_terminal(*words, PYTHONIOENCODING=encoding)
        assert code == 0 and "Traceback" not in said and said, (encoding, words)
        ran = site.shell(f"lmsearch {' '.join(words)}", PYTHONIOENCODING=encoding)
        assert ran.returncode == 0 and b"Traceback" not in ran.stderr and ran.stdout


def test_a_closed_standard_output_begins_no_study(site: Site) -> None:
    for words in ("--version", "run tiny.toml --name closed", "generate tiny"):
        ran = site.shell(f"lmsearch {words} >&-")
        assert ran.returncode == 2 and b"standard output is closed" in ran.stderr, (words, ran.stderr)
    ran = site.shell("lmsearch run tiny.toml --name closed >&- 2>&-; echo $?")
    assert ran.stdout == b"2\n"
    ran = site.shell("lmsearch studies 2>&-")
    assert ran.returncode == 0 and b"tiny" in ran.stdout and b"closed" not in ran.stdout


def test_a_reader_that_leaves_costs_a_search_nothing_and_other_commands_a_quiet_141(site: Site) -> None:
    ran = site.shell("lmsearch run tiny.toml --name cut --workers 1 | head -n 1; echo ${PIPESTATUS[0]}")
    assert ran.stdout.splitlines()[-1] == b"0" and b"Traceback" not in ran.stderr, ran.stderr
    status = site.shell("lmsearch status cut")
    assert b"cut: 1 of 1 trials" in status.stdout
    # More than a pipe holds, so that the reader leaves in the middle.
    ran = site.shell("lmsearch generate tiny --words 60000 | head -c 1; echo ${PIPESTATUS[0]}")
    assert ran.stdout.splitlines()[-1].endswith(b"141") and ran.stderr == b""


@pytest.mark.heavy
def test_a_latin_1_locale_changes_no_figure_and_no_file(site: Site, tmp_path: Path) -> None:
    """Real words of a real locale, made here; what is written is UTF-8 whatever it is."""
    subprocess.run(
        ["localedef", "-i", "de_DE", "-f", "ISO-8859-1", str(tmp_path / "de_DE.ISO-8859-1")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if not (tmp_path / "de_DE.ISO-8859-1").is_dir():
        locale, environment = (
            "POSIX",
            {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        )  # ASCII: the same fault is worse there
    else:
        locale, environment = "de_DE.ISO-8859-1", {"LOCPATH": str(tmp_path)}
    text = "".join(f"über grün süß {'ähnlich' if line % 3 else 'böse'} weiß\n" for line in range(300))
    (site.folder / "umlauts.txt").write_text(text, encoding="utf-8")
    study = (site.folder / "tiny.toml").read_text().replace("text.txt", "umlauts.txt")
    (site.folder / "umlauts.toml").write_text(study)
    ran = site.shell("lmsearch run umlauts.toml --workers 1", LC_ALL=locale, **environment)
    assert ran.returncode == 0, ran.stderr
    outputs = [
        site.shell("lmsearch evaluate umlauts --text umlauts.txt", LC_ALL=name, **environment).stdout
        for name in ("C.UTF-8", locale)
    ]
    assert outputs[0] == outputs[1] != b"" and b"unknown" not in outputs[0]
    shown_there = site.shell("lmsearch show umlauts 0", LC_ALL=locale, **environment)
    assert "über" in shown_there.stdout.decode() and shown_there.returncode == 0


def test_a_usage_error_quotes_nothing_that_is_obeyed(capfd: pytest.CaptureFixture[str]) -> None:
    for words in (["trials", "x", "--limit", TITLE], [CLEAR], ["status", "--json", f"--{TITLE}"]):
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert ended.value.code == 2
        said = capfd.readouterr().err
        assert obeyed(said) == [] and "Error: " in said

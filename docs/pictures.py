"""Make the pictures of README and documentation again, from a real search: `python docs/pictures.py`.

It needs Chromium, and pyte beside the extra `[test]`. About eight minutes on two cores; nothing else should run.
"""

import html
import os
import pty
import select
import shutil
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from fcntl import ioctl
from pathlib import Path
from typing import Any

import pyte
from playwright.sync_api import Page, sync_playwright

IMAGES = Path(__file__).parent / "images"
CHROMIUM = "/usr/bin/chromium"
LMSEARCH = str(Path(sys.executable).with_name("lmsearch"))
LIVE_AFTER = 45.0  # seconds of the search, when its live view is taken

_COLOURS = {
    "black": "#24292f", "red": "#ff7b72", "green": "#7ee787", "brown": "#e3b341", "blue": "#79c0ff",
    "magenta": "#d2a8ff", "cyan": "#76e3ea", "white": "#d0d7de", "brightblack": "#8b949e", "brightred": "#ffa198",
    "brightgreen": "#aff5b4", "brightbrown": "#f8e3a1", "brightblue": "#a5d6ff", "brightmagenta": "#e2c5ff",
    "brightcyan": "#b3f0ff", "brightwhite": "#ffffff",
}  # fmt: skip
_TERMINAL = """<!doctype html><meta charset="utf-8"><style>
body { margin: 0; display: inline-block; background: #0d1117; color: #d0d7de; border-radius: 8px; }
p { margin: 0; padding: 9px 14px; font: 13px sans-serif; color: #8b949e; border-bottom: 1px solid #30363d; }
pre { margin: 0; padding: 12px 14px; font: 14px/1.35 "DejaVu Sans Mono", monospace; }
</style><p>$ %s</p><pre>%s</pre>"""


def main() -> None:
    """Make all of them."""
    with tempfile.TemporaryDirectory() as name, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        folder = Path(name)
        words = ["run", "--sampler", "tpe", "--workers", "2"]
        live, end = terminal(words, folder, (100, 34), LIVE_AFTER)
        shown = " ".join(["lmsearch", *words])
        picture_of(browser.new_page(device_scale_factor=1.5), shown, live, "live")
        picture_of(browser.new_page(device_scale_factor=1.5), shown, end, "end")
        shutil.copytree(folder / "runs", folder / "small/runs")  # the same search, resumed in a narrow terminal
        live, _ = terminal(["run", "default", "--more", "4", "--workers", "2"], folder / "small", (80, 24), 12.0)
        picture_of(browser.new_page(device_scale_factor=1.5), "lmsearch run default --more 4", live, "live-80")
        for command in (["confirm", "default", "--top", "3", "--seeds", "3", "--workers", "2"], ["report", "default"]):
            subprocess.run([LMSEARCH, *command], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        for theme in ("light", "dark"):
            page = browser.new_page(viewport={"width": 1400, "height": 900})
            page.goto(f"{(folder / 'runs/default/report.html').as_uri()}?theme={theme}")
            page.wait_for_timeout(1500)
            page.screenshot(path=IMAGES / f"report-{theme}.png")
        page = browser.new_page(viewport={"width": 400, "height": 900}, device_scale_factor=2)
        page.goto((folder / "runs/default/report.html").as_uri())
        page.wait_for_timeout(1500)
        page.screenshot(path=IMAGES / "report-narrow.png")
        with dashboard(folder) as url:
            page = browser.new_page(viewport={"width": 1400, "height": 900})
            page.goto(f"{url}dashboard/studies/1/note")
            page.wait_for_timeout(6000)
            page.screenshot(path=IMAGES / "dashboard.png")
        browser.close()


@contextmanager
def dashboard(folder: Path) -> Iterator[str]:
    """Serve the folder's store; give the page's address."""
    port = "18734"
    server = subprocess.Popen(
        [LMSEARCH, "dashboard", "--port", port], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        assert server.stdout is not None
        server.stdout.readline()
        time.sleep(3)
        yield f"http://127.0.0.1:{port}/"
    finally:
        server.terminate()
        server.wait(timeout=30)


def terminal(words: list[str], folder: Path, size: tuple[int, int], seconds: float) -> tuple[str, str]:
    """Run a command in a terminal of so many columns and rows; return its screen after so long and at its end."""
    columns, rows = size
    child, descriptor = pty.fork()
    if child == 0:
        os.chdir(folder)
        os.environ["TERM"] = "xterm-256color"
        os.environ.pop("COLUMNS", None)
        os.environ.pop("LINES", None)
        time.sleep(0.3)  # until the terminal has its size
        os.execv(LMSEARCH, [LMSEARCH, *words])
    ioctl(descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    screen = pyte.Screen(columns, rows)
    stream = pyte.ByteStream(screen)
    began, live = time.monotonic(), ""
    while True:
        if select.select([descriptor], [], [], 0.1)[0]:
            try:
                data = os.read(descriptor, 65_536)
            except OSError:  # the command has ended
                data = b""
            if not data:
                break
            stream.feed(data)
        if not live and time.monotonic() - began > seconds:
            live = markup(screen)
    os.waitpid(child, 0)
    return live, markup(screen)


def markup(screen: Any) -> str:
    """Return a terminal's screen as HTML."""
    lines = []
    for row in range(screen.lines):
        line = ""
        for column in range(screen.columns):
            cell = screen.buffer[row][column]
            colour = _COLOURS.get(cell.fg, f"#{cell.fg}" if len(cell.fg) == 6 else "")
            style = (f"color:{colour};" if colour else "") + ("font-weight:bold;" if cell.bold else "")
            text = html.escape(cell.data)
            line += f'<span style="{style}">{text}</span>' if style else text
        lines.append(line.rstrip())
    return "\n".join(lines).rstrip()


def picture_of(page: Page, command: str, screen: str, name: str) -> None:
    """Write a terminal's screen as a picture."""
    page.set_content(_TERMINAL % (html.escape(command), screen))
    page.locator("body").screenshot(path=IMAGES / f"{name}.png", omit_background=True)


if __name__ == "__main__":
    main()

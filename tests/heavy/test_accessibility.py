"""axe-core's rules, in a real browser, on the report in both themes and on the documentation site."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lmsearch.report.write import write_report
from lmsearch.results.reading import read
from tests.results.made import make_study, some_trials

pytestmark = pytest.mark.heavy
DOCS = Path(__file__).parents[2] / "docs"


def serious(page: Any) -> list[str]:
    """Return what axe finds serious or critical, with where it is."""
    reason = "no page was checked: pip install '.[test-heavy]'"
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason=reason)
    found = axe.Axe().run(page).response["violations"]
    return [
        f"{one['id']} ({one['impact']}): {one['nodes'][0]['html'][:120]}"
        for one in found
        if one["impact"] in ("serious", "critical")
    ]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_report_has_no_serious_finding(prepared_sqlite: Path, tmp_path: Path, browser: Any, theme: str) -> None:
    (tmp_path / "store.db").write_bytes(prepared_sqlite.read_bytes())
    url = f"sqlite:///{tmp_path / 'store.db'}"
    make_study(url, some_trials(40))
    path = tmp_path / "report.html"
    path.write_text(write_report(read("made", url), " ".join), encoding="utf-8")
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    page.goto(f"{path.as_uri()}?theme={theme}")
    page.wait_for_timeout(1500)
    assert serious(page) == []


def test_the_site_has_no_serious_finding(tmp_path: Path, browser: Any) -> None:
    pytest.importorskip("furo", reason="no site was built: pip install 'lmsearch[docs]'")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
    subprocess.run([*command, str(DOCS), str(tmp_path / "site")], check=True)
    for name in ("index", "getting-started", "comparison", "api", "commands/README"):
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.goto((tmp_path / f"site/{name}.html").as_uri())
        assert serious(page) == [], name
        page.close()

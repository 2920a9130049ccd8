"""The dashboard in a real browser: how a visitor comes in, and what the page's own buttons may do."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.dashboard.served import TOKEN, Served, served
from tests.store.helpers import Bench

pytestmark = pytest.mark.slow


@pytest.fixture
def bench(prepared_sqlite: Path, tmp_path: Path) -> Bench:
    shutil.copy(prepared_sqlite, tmp_path / "store.db")
    return Bench(f"sqlite:///{tmp_path / 'store.db'}")


@pytest.fixture
def server(bench: Bench, tmp_path: Path) -> Iterator[Served]:
    with served(str(bench.storage.store_url), tmp_path / "log", LMSEARCH_DASHBOARD_TOKEN=TOKEN) as server:
        yield server


@pytest.fixture
def visitor(browser: Browser, server: Served) -> Page:
    """Give a page that has come in with the token in its URL."""
    page = browser.new_page()
    page.goto(f"{server.origin}/?token={TOKEN}")
    expect(page.get_by_text("bench")).to_be_visible(timeout=30_000)
    return page


def test_the_list_of_studies_comes_up_whole_and_the_token_stays_nowhere(browser: Browser, server: Served) -> None:
    troubles: list[str] = []
    page = browser.new_page()
    page.on("console", lambda said: troubles.append(said.text) if said.type == "error" else None)
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.goto(f"{server.origin}/?token={TOKEN}")
    expect(page.get_by_text("bench")).to_be_visible(timeout=30_000)
    assert page.url.startswith(f"{server.origin}/dashboard")
    assert TOKEN not in str(page.evaluate("[document.cookie, document.referrer, location.href]"))
    assert troubles == []


def test_a_token_that_is_typed_opens_the_page_and_a_wrong_one_is_reported(browser: Browser, server: Served) -> None:
    page = browser.new_page()
    page.goto(f"{server.origin}/dashboard")
    expect(page.get_by_text("This dashboard needs a token.")).to_be_visible()
    page.get_by_label("Token").fill("wrong")
    page.get_by_role("button", name="Open").click()
    expect(page.get_by_text("That is not the token of this dashboard.")).to_be_visible()
    page.get_by_label("Token").fill(TOKEN)
    page.get_by_role("button", name="Open").click()
    expect(page.get_by_text("bench")).to_be_visible(timeout=30_000)


def test_the_delete_button_deletes_but_not_while_somebody_works_on_the_study(
    visitor: Page, bench: Bench, tmp_path: Path
) -> None:
    def delete() -> None:
        visitor.get_by_role("button", name="delete study").click()
        visitor.get_by_role("button", name="Yes").click()

    bench.queue()
    ticket = bench.take()
    delete()
    expect(visitor.get_by_text("Failed to delete study")).to_be_visible()
    assert "1 trial of bench is being worked on" in (tmp_path / "log").read_text()
    visitor.reload()
    expect(visitor.get_by_text("bench")).to_be_visible(timeout=30_000)
    assert [study.study_name for study in bench.storage.get_all_studies()] == ["bench"]

    bench.storage.release(ticket, None, None)
    delete()
    expect(visitor.get_by_text("Success to delete a study")).to_be_visible()
    assert bench.storage.get_all_studies() == []


def test_below_a_prefix_the_page_asks_for_nothing_outside_of_it(browser: Browser, bench: Bench, tmp_path: Path) -> None:
    with served(
        str(bench.storage.store_url), tmp_path / "log", "--prefix", "/lm", LMSEARCH_DASHBOARD_TOKEN=TOKEN
    ) as server:
        urls: list[str] = []
        troubles: list[str] = []
        page = browser.new_page()
        page.on("request", lambda request: urls.append(request.url))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.goto(f"{server.origin}/lm/")
        expect(page.get_by_text("This dashboard needs a token.")).to_be_visible()
        page.get_by_label("Token").fill(TOKEN)
        page.get_by_role("button", name="Open").click()
        expect(page.get_by_text("bench")).to_be_visible(timeout=30_000)
        page.get_by_text("bench").first.click()
        expect(page.get_by_text("Hyperparameter Importance").first).to_be_visible(timeout=30_000)
        assert page.url.startswith(f"{server.origin}/lm/dashboard/studies/")
        assert all(url.startswith((f"{server.origin}/lm/", "data:", "blob:")) for url in urls), urls
        assert [url for url in urls if "/lm/api/studies/" in url] and troubles == []
        page.reload()
        expect(page.get_by_text("Hyperparameter Importance").first).to_be_visible(timeout=30_000)

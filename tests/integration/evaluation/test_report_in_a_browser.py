"""The report in a headless Chromium: no errors, no requests, both themes, a phone, the keyboard; and the live page."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from browser import CHROMIUM, Browser, browser
from made_up_runs import made_up_run
from seedtune.evaluation import report
from seedtune.evaluation.live_report import LiveServer
from seedtune.run.directory import RunPaths
from waiting import wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.no_cover,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine"),
]
MARK = "<img src=http://127.0.0.1:9/x onerror=alert(1)><script>document.title='forged'</script>"


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Addresses of the page of one run, of two compared, and of a forged one."""
    root = tmp_path_factory.mktemp("pages")
    first, second, forged = (RunPaths(made_up_run(root / name, prompts=8)) for name in ("a", "b", "forged"))
    rows = [json.loads(line) for line in forged.metrics.read_text().splitlines()]
    for row in rows[:50]:
        row |= {f"rewards/{MARK}/mean": 1e308, "reward": float("nan"), "step_time": float("inf"), "alarms": [MARK]}
    forged.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = forged.samples.read_text().replace("Question", MARK.replace('"', "'")).replace("answer", MARK)
    forged.samples.write_text(text)
    found = {"one": report.render(first), "two": report.render(first, second), "forged": report.render(forged)}
    for name, html in found.items():
        (root / f"{name}.html").write_text(html, encoding="utf-8")
    return {name: (root / f"{name}.html").as_uri() for name in found}


@pytest.mark.parametrize("name", ["one", "two", "forged"])
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1100])
def test_a_page_opens_without_errors_requests_or_sideways_scrolling(
    name: str, theme: str, width: int, chromium: Browser, pages: dict[str, str]
) -> None:
    chromium.open(pages[name], width=width, theme=theme)
    assert chromium.errors() == []
    assert [url for url in chromium.requested() if not url.startswith("data:")] == [pages[name]]
    chromium.run("document.querySelectorAll('details').forEach(part => { part.open = true })")
    assert chromium.run("document.documentElement.scrollWidth") <= width
    assert chromium.run("document.title").startswith("seedtune: ")
    assert chromium.run("document.scripts.length + document.images.length") == 0
    paper = chromium.run("getComputedStyle(document.body).backgroundColor")
    assert paper == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 28)"}[theme]


def test_text_on_a_phone_is_large_enough(chromium: Browser, pages: dict[str, str]) -> None:
    chromium.open(pages["one"], width=360)
    sizes = "[...document.querySelectorAll('main *')].filter(e => e.textContent.trim() && !e.closest('svg'))"
    assert chromium.run(f"Math.min(...{sizes}.map(e => parseFloat(getComputedStyle(e).fontSize)))") >= 12
    assert chromium.run("Math.min(...[...document.querySelectorAll('.plot > svg')].map(e => e.clientHeight))") >= 100


def test_the_keyboard_reaches_links_details_and_wide_tables(chromium: Browser, pages: dict[str, str]) -> None:
    chromium.open(pages["one"])
    reached = []
    for _ in range(12):
        chromium.press_tab()
        reached.append(chromium.run("document.activeElement.className || document.activeElement.tagName"))
    assert reached[0] == "skip"
    assert {"A", "SUMMARY"} <= set(reached)
    assert chromium.run("[...document.querySelectorAll('.wide')].every(e => e.tabIndex === 0)")


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Any]:
    paths = RunPaths(made_up_run(tmp_path / "run", generations=20, prompts=3))
    os.utime(paths.metrics, (1_700_000_000, 1_700_000_000))
    with LiveServer(paths) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_the_live_page_follows_the_run_and_keeps_what_is_open(live: LiveServer, chromium: Browser) -> None:
    paths = live.live.paths
    chromium.open(live.url)
    assert chromium.run("document.getElementById('status').className") == "stalled"
    chromium.run("document.querySelector('#reward summary').click()")
    with paths.metrics.open("a") as file:
        file.write(json.dumps({"generation": 21, "reward": 0.875, "reward_std": 0.1, "step_time": 1.0}) + "\n")
    assert wait_until(lambda: "0.875" in chromium.run("document.getElementById('main').textContent"), seconds=60)
    assert chromium.run("document.getElementById('status').className") == "running"
    assert chromium.run("document.querySelector('#reward details').open")
    paths.report.write_text("page")
    assert wait_until(lambda: chromium.run("document.getElementById('status').className") == "ended", seconds=60)
    assert chromium.errors() == []
    assert all(url.startswith((live.url, "data:")) for url in chromium.requested())

"""The pages of `unlearn report` and `unlearn demo` in the system's Chromium."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from tests.helpers.finished_runs import HOSTILE, make_finished
from unlearn.reports.page import ReportOptions, report_runs

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (CHROMIUM and DRIVER), reason="no chromium and chromedriver to be found"
    ),
]
WIDTHS = {"desktop": 1400, "phone": 390}


@pytest.fixture(scope="module")
def browser() -> Iterator[Chrome]:
    """Chromium without a window, which keeps what pages write to the console."""
    assert CHROMIUM  # else all is skipped
    options = ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = Chrome(options, Service(DRIVER))
    yield driver
    driver.quit()


def set_width(browser: Chrome, width: int) -> None:
    """Show pages as a screen of this width does."""
    screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)


def overflow(browser: Chrome) -> int:
    """By how many pixels the page is wider than the screen."""
    root = "document.documentElement"
    return int(browser.execute_script(f"return {root}.scrollWidth - {root}.clientWidth"))


def errors(browser: Chrome) -> list[str]:
    """What the page's console says since the last call, but for mere information."""
    return [line["message"] for line in browser.get_log("browser") if line["level"] != "INFO"]


@pytest.fixture(scope="module")
def pages(bad_input_run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A page of one run, of several, of one with hostile prompts, and of an unsafe concept."""
    folder = tmp_path_factory.mktemp("pages")
    made: dict[str, dict[str, Any]] = {
        "one": {}, "two": {"judged": False}, "hostile": {"prompt": HOSTILE + "y" * 200},
        "unsafe": {"kind": "unsafe"},
    }  # fmt: skip
    runs = {name: make_finished(folder / name, bad_input_run, **how) for name, how in made.items()}
    shown = {name: [str(run)] for name, run in runs.items()}
    shown["several"] = [str(runs[name]) for name in ("one", "two", "hostile")]
    return {
        name: report_runs(paths, ReportOptions(out=f"{folder / name}.html"))
        for name, paths in shown.items()
    }


@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
@pytest.mark.parametrize("name", ["one", "several", "hostile", "unsafe"])
def test_the_page_fits_and_works(
    browser: Chrome, pages: dict[str, Path], name: str, width: int
) -> None:
    set_width(browser, width)
    browser.get(pages[name].as_uri())
    assert overflow(browser) <= 0
    assert errors(browser) == []
    assert browser.execute_script("return typeof hacked") == "undefined"
    broken = "return [...document.images].filter(i => !i.complete || !i.naturalWidth).length"
    assert browser.execute_script(broken) == 0
    fetched = browser.execute_script("return performance.getEntriesByType('resource')")
    assert [entry["name"] for entry in fetched if not entry["name"].startswith("data:")] == []


def test_a_click_shows_an_explicit_image_and_another_hides_it(
    browser: Chrome, pages: dict[str, Path]
) -> None:
    browser.get(pages["unsafe"].as_uri())
    first, second = browser.find_elements(By.CSS_SELECTOR, ".veil img")[:2]
    for clicks in range(3):
        assert (first.value_of_css_property("filter") == "none") == (clicks % 2 == 1)
        assert second.value_of_css_property("filter").startswith("blur(")
        first.click()


def test_the_snippet_is_copied(browser: Chrome, pages: dict[str, Path]) -> None:
    set_width(browser, WIDTHS["desktop"])
    browser.get(pages["one"].as_uri())
    button = browser.find_element(By.CSS_SELECTOR, ".copyable button")
    button.click()
    selected = browser.execute_script("return getSelection().toString()")
    assert "unlearn.load_run(" in selected


@pytest.fixture
def demo(bad_input_run: Path, tmp_path: Path) -> Iterator[str]:
    """The address of a demo that runs, of an unsafe concept."""
    run = make_finished(tmp_path / "run", bad_input_run, kind="unsafe")
    command = [Path(sys.executable).parent / "unlearn", "demo", run, "port=0"]
    silent = {**os.environ, "https_proxy": "http://127.0.0.1:9", "no_proxy": "127.0.0.1,localhost"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=silent, preexec_fn=heed_interrupts
    ) as process:
        try:
            assert process.stdout
            line = process.stdout.readline()
            address = re.match(r"(http://127\.0\.0\.1:\d+)/? \(Ctrl-C ends it\)", line)
            assert address, line
            yield address[1]
            process.send_signal(signal.SIGINT)
            assert process.wait(60) in (0, -signal.SIGINT, 130)
        finally:
            process.kill()


def heed_interrupts() -> None:
    """A process begun in a shell's background ignores Ctrl-C, and so do its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def upload(address: str) -> Request:
    """A request that sends a small file."""
    head = 'Content-Disposition: form-data; name="files"; filename="a.txt"'
    body = f"--edge\r\n{head}\r\n\r\ntext\r\n--edge--\r\n".encode()
    return Request(address, body, {"Content-Type": "multipart/form-data; boundary=edge"})


def drawn(browser: Chrome) -> list[str]:
    """The addresses of the images drawn."""
    images = browser.find_elements(By.CSS_SELECTOR, ".drawn .grid-container img")
    return [str(image.get_attribute("src")) for image in images]


@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
def test_the_demo_draws_both_sides_and_refuses_what_it_cannot_read(
    browser: Chrome, demo: str, width: int
) -> None:
    set_width(browser, width)
    browser.get(demo)
    wait = WebDriverWait(browser, 30)
    field = wait.until(lambda b: b.find_element(By.CSS_SELECTOR, "textarea"))
    steps = browser.find_element(By.CSS_SELECTOR, "input[aria-label*='Sampling steps']")
    browser.execute_script(
        "arguments[0].value = 2; arguments[0].dispatchEvent(new Event('input'))", steps
    )
    (button,) = [b for b in browser.find_elements(By.TAG_NAME, "button") if b.text == "Draw"]
    example = browser.find_element(By.CSS_SELECTOR, "button.gallery-item")
    example.click()
    wait.until(lambda b: field.get_attribute("value") == example.text)
    field.clear()
    field.send_keys("a skyscraper of a panda")
    button.click()
    base, unlearned = wait.until(lambda b: drawn(b) if len(drawn(b)) == 2 else None)
    assert base != unlearned
    wait.until(lambda b: "no text with skyscraper: it can only guess" in b.page_source)
    captions = [c.text for c in browser.find_elements(By.CSS_SELECTOR, ".drawn .caption-label")]
    assert [c.partition(";")[0] for c in captions] == ["base, seed 0", "unlearned, seed 0"]
    assert all("; the judge sees " in caption for caption in captions)
    left, right = browser.find_elements(By.CSS_SELECTOR, ".drawn .grid-container img")
    assert left.location["y"] == right.location["y"]  # side by side, on a phone too
    assert left.location["x"] + left.size["width"] <= right.location["x"]
    image = browser.find_element(By.CSS_SELECTOR, ".drawn img")
    assert image.value_of_css_property("filter").startswith("blur(")
    browser.find_element(By.CSS_SELECTOR, "#explicit input").click()
    assert image.value_of_css_property("filter") == "none"
    assert overflow(browser) <= 0
    field.clear()
    field.send_keys("a ☂")
    button.click()
    wait.until(lambda b: "the tokenizer does not know ['☂']" in b.page_source)
    assert not [line for line in errors(browser) if "favicon" not in line]
    with pytest.raises(HTTPError, match="413"):  # nothing here takes a file
        urlopen(upload(f"{demo}/gradio_api/upload"))
    fetched = browser.execute_script("return performance.getEntriesByType('resource')")
    assert fetched
    assert not [e["name"] for e in fetched if not e["name"].startswith((demo, "data:", "blob:"))]

"""The page in a real browser: a chat, the slider, the keyboard, and not one violation of its policy."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qdeploy.serve.limits import Limits
from tests.serve.conftest import Client, serving

pytestmark = [pytest.mark.clients, pytest.mark.filterwarnings("ignore::ResourceWarning")]


@pytest.fixture
def served(tiny: Path) -> Iterator[Client]:
    with serving(tiny, Limits(sequences=4), memory="4MB", admin="admin") as client:
        yield client


@pytest.fixture(params=["light", "dark"])
def browser(request: pytest.FixtureRequest) -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("chromium and chromedriver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1280,800"):
        options.add_argument(argument)
    if request.param == "dark":
        options.add_argument("--blink-settings=preferredColorScheme=0")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = webdriver.Chrome(options, webdriver.ChromeService(driver))
    try:
        yield opened
    finally:
        opened.quit()


def wait(browser: Any, condition: str, seconds: float = 30) -> Any:
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, seconds, 0.05).until(lambda b: b.execute_script(f"return {condition}"))


def test_a_person_chats_and_moves_the_budget_by_the_keyboard_alone(served: Client, browser: Any):
    from selenium.webdriver.common.keys import Keys

    browser.get(f"http://127.0.0.1:{served.port}/#admin=admin")
    wait(browser, "document.getElementById('model').textContent.startsWith('tiny')")
    assert "admin" not in browser.current_url
    browser.switch_to.active_element.send_keys("hello" + Keys.ENTER)
    wait(browser, "document.querySelectorAll('.turn').length === 2 && !document.getElementById('send').disabled")
    assert "bits per weight" in wait(browser, "document.querySelector('.turn:last-child small').textContent")
    wait(browser, "document.getElementById('now').children.length > 10")
    slider = browser.find_element("id", "budget")
    browser.execute_script("arguments[0].step = 100000", slider)
    slider.send_keys(Keys.HOME, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    wait(browser, "document.getElementById('planned').textContent.includes('bits per weight')")
    end = browser.execute_script("return +document.getElementById('budget').value")
    assert end < 4_000_000
    for _ in range(200):
        if served.get("/v1/memory").json["budget"] < 4_000_000:
            break
    assert served.get("/v1/memory").json["budget"] < 4_000_000
    browser.find_element("id", "new").click()
    wait(
        browser,
        "document.querySelectorAll('.turn').length === 0 && document.querySelectorAll('#sessions li').length === 2",
    )
    log = [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert not [text for text in log if "favicon" not in text], log
    if folder := os.environ.get("QDEPLOY_SCREENSHOTS"):
        browser.execute_script("document.querySelector('#sessions li:last-child button').click()")
        dark = browser.execute_script("return matchMedia('(prefers-color-scheme: dark)').matches")
        browser.save_screenshot(str(Path(folder) / f"page-{'dark' if dark else 'light'}.png"))

"""The bench's page in a real browser: it renders, sorts, shows numbers, complains of nothing and asks for nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from optimizer.bench.page import page
from tests.benches import facts

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs Debian's chromium and chromium-driver")
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
)  # fmt: skip


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    for flag in FLAGS:
        options.add_argument(flag)
    options.binary_location = CHROMIUM
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def opened(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    file = tmp_path_factory.mktemp("page") / "report.html"
    file.write_text(page(facts()), "utf-8")
    browser.get(file.as_uri())
    return browser


def names(browser: Any) -> list[str]:
    return [row.text for row in browser.find_elements("css selector", "tbody th")]


def test_it_asks_for_nothing_and_complains_of_nothing(opened: Any) -> None:
    asked = []
    for entry in opened.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            asked.append(message["params"]["request"]["url"])
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    assert opened.get_log("browser") == []


def test_it_says_what_was_found(opened: Any) -> None:
    text = opened.find_element("tag name", "main").text
    assert "ort-int8 is 2.50 times as fast as original" in text
    assert "no difference" in text
    assert "other: crashed" in text and "SIGSEGV" in text
    assert names(opened) == ["original", "ort-int8", "openvino-fp32", "trt-int8", "other"]
    pictures = opened.find_elements("css selector", "figure svg")
    assert len(pictures) == 5
    assert all(picture.size["width"] > 200 and picture.size["height"] > 60 for picture in pictures)


def test_the_table_sorts_both_ways_and_keeps_what_has_no_number_last(opened: Any) -> None:
    head = next(h for h in opened.find_elements("css selector", "thead button") if h.text.startswith("p50"))
    head.click()
    assert names(opened) == ["ort-int8", "original", "openvino-fp32", "trt-int8", "other"]
    head.click()
    assert names(opened) == ["openvino-fp32", "original", "ort-int8", "trt-int8", "other"]
    assert opened.find_element("css selector", "th[aria-sort=descending]").text.startswith("p50")
    head = next(h for h in opened.find_elements("css selector", "thead button") if h.text.startswith("backend"))
    head.click()
    assert names(opened) == sorted(names(opened))


def test_a_mark_shows_its_numbers_to_pointer_and_keyboard(opened: Any) -> None:
    tip = opened.find_element("id", "tip")
    mark = opened.find_element("css selector", "circle[data-tip^='ort-int8: 2.50x']")
    opened.execute_script("arguments[0].scrollIntoView({block: 'center'})", mark)
    webdriver.ActionChains(opened).move_to_element(mark).perform()
    assert tip.is_displayed() and tip.text.startswith("ort-int8: 2.50x, 95 % between")
    webdriver.ActionChains(opened).move_to_element(opened.find_element("tag name", "h1")).perform()
    assert not tip.is_displayed()
    opened.execute_script("arguments[0].focus()", mark)
    assert tip.is_displayed()


@pytest.mark.parametrize(("width", "scheme"), [(360, "light"), (1200, "dark")])
def test_it_fits_a_phone_and_the_dark(opened: Any, width: int, scheme: str) -> None:
    opened.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    )
    opened.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    assert opened.execute_script("return document.documentElement.scrollWidth") <= width
    back = opened.find_element("tag name", "body").value_of_css_property("background-color")
    assert (sum(map(int, back[back.index("(") + 1 : -1].split(",")[:3])) < 384) == (scheme == "dark")
    assert Path(opened.current_url).name == "report.html"


def test_several_models_are_folded_below_their_overview(browser: Any, tmp_path: Path) -> None:
    file = tmp_path / "models.html"
    file.write_text(page(facts("first.onnx"), facts("second.onnx")), "utf-8")
    browser.get(file.as_uri())
    rows = browser.find_elements("css selector", "main > .wide tbody th")
    assert [row.text for row in rows] == ["first", "second", "geometric mean"]
    folds = browser.find_elements("css selector", "details")
    assert [fold.find_element("tag name", "summary").text for fold in folds] == ["first.onnx", "second.onnx"]
    picture = folds[1].find_element("css selector", "figure svg")
    assert not picture.is_displayed()
    folds[1].find_element("tag name", "summary").click()
    assert picture.is_displayed() and picture.size["width"] > 200
    head = browser.find_element("css selector", "main > .wide thead button")
    head.click()
    head.click()
    rows = browser.find_elements("css selector", "main > .wide tbody th")
    assert [row.text for row in rows] == ["second", "geometric mean", "first"]
    assert browser.get_log("browser") == []

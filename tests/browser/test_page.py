"""The inspector served by Voila, in headless Chromium. `make test-browser` runs this, `make test` does not.

It needs Chromium and its driver (Debian: chromium, chromium-driver) and the models of a study. SCREENSHOT=path keeps a picture of the page.
"""

import os
import shutil
import socket
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait
from tiny import ROOT

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
WAIT = 600  # seconds, for a busy machine

pytestmark = [
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="no Chromium with its driver is found: install chromium and chromium-driver"),
    pytest.mark.skipif(not (ROOT / "models/default/segmenter.json").is_file(), reason="no models/default: `make repro` makes it"),
]


@pytest.fixture(scope="module")
def port():
    """The port of the loopback address on which the page of this checkout is served."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number = free.getsockname()[1]
    command = [sys.executable, "-m", "voila", "notebooks/inspect.ipynb", "--template=offline", "--Voila.ip=127.0.0.1", "--no-browser"]
    command += [f"--port={number}", f"--VoilaExecutor.startup_timeout={WAIT}"]
    environment = os.environ | {"JUPYTER_PATH": str(ROOT / "scripts"), "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, cwd=ROOT, env=environment) as server:
        yield number
        server.terminate()


@pytest.fixture(scope="module")
def driver(port):
    """Chromium on the loaded page."""
    options = webdriver.ChromeOptions()
    for argument in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "window-size=1750,1950", "hide-scrollbars"):
        options.add_argument(f"--{argument}")
    options.binary_location = CHROMIUM
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    browser.command_executor.client_config.timeout = WAIT
    with browser:
        browser.set_page_load_timeout(WAIT)
        WebDriverWait(browser, WAIT).until(lambda _: socket.socket().connect_ex(("127.0.0.1", port)) == 0)
        browser.get(f"http://127.0.0.1:{port}/")
        drawn = "return [...document.images].filter(image => image.naturalWidth > 100).length"
        WebDriverWait(browser, WAIT).until(lambda d: d.execute_script(drawn) == 20)  # ten for each of two runs
        yield browser


def panel(driver, title, part="img"):
    """A part of the first panel whose title begins so."""
    return driver.find_element(By.XPATH, f"//*[img and .//b[starts-with(., '{title}')]]//{part}")


def errors(driver):
    return [entry["message"] for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]


def test_the_page_loads_without_code_and_without_errors(driver):
    assert panel(driver, "maskclip: ") and panel(driver, "default: ")
    assert not driver.find_elements(By.CSS_SELECTOR, ".jp-InputArea .cm-editor")
    assert not errors(driver)
    if where := os.environ.get("SCREENSHOT"):
        driver.save_screenshot(where)


def test_a_slider_changes_its_panel(driver):
    before = panel(driver, "Object: the top 40%").get_attribute("src")
    slider = driver.find_element(By.XPATH, "//label[normalize-space()='alpha']/following::*[contains(@class,'noUi-handle')][1]")
    slider.send_keys(Keys.ARROW_RIGHT * 5)
    WebDriverWait(driver, WAIT).until(lambda d: panel(d, "Object: the top 45%").get_attribute("src") != before)


def test_a_typed_class_appears_in_the_legend(driver):
    assert "zebra" not in panel(driver, "Label map", "div").text
    driver.find_element(By.TAG_NAME, "textarea").send_keys(", zebra", Keys.TAB)
    WebDriverWait(driver, WAIT).until(lambda d: "zebra" in panel(d, "Label map", "div").text)


def test_a_click_explains_a_pixel(driver):
    before = panel(driver, "Score", "table").text
    image = panel(driver, "Label map")
    corner = -image.size["width"] // 2 + 8, -image.size["height"] // 2 + 8  # from the centre
    ActionChains(driver).move_to_element_with_offset(image, *corner).click().perform()
    WebDriverWait(driver, WAIT).until(lambda d: panel(d, "Score", "table").text != before)
    assert len(panel(driver, "Score", "table").text.splitlines()) == 6


def test_an_uploaded_picture_is_shown(driver, tmp_path):
    Image.fromarray(np.full((40, 60, 3), 90, np.uint8)).save(tmp_path / "mine.png")
    driver.find_element(By.XPATH, "//option[contains(., 'own')]").click()
    caught = "HTMLInputElement.prototype.click = function() { this.style.display = 'block'; document.body.append(this) }"
    driver.execute_script(caught)  # instead of opening the system's dialog
    driver.find_element(By.CSS_SELECTOR, "button.widget-upload").click()
    driver.find_element(By.CSS_SELECTOR, "input[type=file]").send_keys(str(tmp_path / "mine.png"))
    WebDriverWait(driver, WAIT).until(lambda d: d.find_elements(By.XPATH, "//b[.='default: mine.png']"))
    assert not errors(driver)

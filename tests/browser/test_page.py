"""The inspector as a reader meets it: served by Voila, in headless Chromium. `make test-browser` runs this, `make test` does not.

It needs Chromium and its driver (Debian: chromium, chromium-driver) and the models of a study. SCREENSHOT=path keeps a picture of the page.
"""

import os
import shutil
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
WAIT = 600  # seconds, for a busy machine

pytestmark = [
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="no Chromium with its driver is found: install chromium and chromium-driver"),
    pytest.mark.skipif(not (ROOT / "models/mgca/segmenter.json").is_file(), reason="no models/mgca: `make repro` makes it"),
]


def wait(driver, condition):
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(driver, WAIT).until(condition)


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """The page of this checkout, served on the loopback address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = (tmp_path_factory.mktemp("voila") / "log").open("w")
    options = ["--template=offline", "--Voila.ip=127.0.0.1", f"--port={port}", "--no-browser", f"--VoilaExecutor.startup_timeout={WAIT}"]
    command = [sys.executable, "-m", "voila", "notebooks/inspect.ipynb", *options]
    paths = {"JUPYTER_PATH": str(ROOT / "scripts"), "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, cwd=ROOT, env=os.environ | paths, stdout=log, stderr=subprocess.STDOUT) as server:
        yield f"http://127.0.0.1:{port}/"
        server.terminate()


@pytest.fixture(scope="module")
def driver(address):
    """Chromium on the loaded page."""
    from selenium import webdriver
    from selenium.webdriver.common.by import By

    options = webdriver.ChromeOptions()
    for argument in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "window-size=1500,1750", "hide-scrollbars"):
        options.add_argument(f"--{argument}")
    options.binary_location = CHROMIUM
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    browser.command_executor.client_config.timeout = WAIT
    try:
        browser.set_page_load_timeout(WAIT)
        wait(browser, lambda _: reachable(address))
        browser.get(address)
        wait(browser, lambda d: sum(image.is_displayed() for image in d.find_elements(By.CSS_SELECTOR, ".ovseg-panel img")) >= 17)
        yield browser
    finally:
        browser.quit()


def reachable(address):
    try:
        return urllib.request.urlopen(f"{address}static/voila.js", timeout=5).status == 200
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False


def panel(driver, title):
    """The first panel whose title begins so."""
    from selenium.webdriver.common.by import By

    return next(found for found in driver.find_elements(By.CSS_SELECTOR, ".ovseg-panel") if found.text.startswith(title))


def reasons(driver):
    """The texts of the tables that explain a pixel, read at once: the page replaces them."""
    return driver.execute_script("return [...document.querySelectorAll('.ovseg-why')].map(table => table.innerText)")


def source(found):
    from selenium.webdriver.common.by import By

    return found.find_element(By.TAG_NAME, "img").get_attribute("src")


def control(driver, label, tag):
    """The input beside a label."""
    from selenium.webdriver.common.by import By

    return driver.find_element(By.XPATH, f"//label[normalize-space()='{label}']/following-sibling::*[1]/descendant-or-self::{tag}")


def test_the_page_loads_without_code_and_without_errors(driver):
    from selenium.webdriver.common.by import By

    assert "seen as in evaluation" in driver.find_element(By.CSS_SELECTOR, ".ovseg-status").text
    assert not driver.find_elements(By.CSS_SELECTOR, ".jp-InputArea .cm-editor")
    errors = [entry["message"] for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]
    assert not errors
    if where := os.environ.get("SCREENSHOT"):
        driver.save_screenshot(where)


def test_a_slider_moved_changes_the_picture(driver):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    before = source(panel(driver, "Object: the top 40%"))
    driver.find_element(By.XPATH, "//label[normalize-space()='alpha']/following::*[contains(@class,'noUi-handle')][1]").send_keys(
        Keys.ARROW_RIGHT * 5
    )
    wait(driver, lambda d: source(panel(d, "Object: the top")) != before)
    assert not panel(driver, "Object: the top").text.startswith("Object: the top 40%")


def test_a_typed_class_appears_in_the_legend(driver):
    from selenium.webdriver.common.keys import Keys

    assert "zebra" not in panel(driver, "Label map").text
    control(driver, "classes", "textarea").send_keys(", zebra", Keys.TAB)
    wait(driver, lambda d: "zebra" in panel(d, "Label map").text)


def test_a_click_explains_a_pixel(driver):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By

    before = reasons(driver)
    image = panel(driver, "Label map").find_element(By.TAG_NAME, "img")
    across, down = -image.size["width"] // 2 + 8, -image.size["height"] // 2 + 8
    ActionChains(driver).move_to_element_with_offset(image, across, down).click().perform()  # the upper left corner
    wait(driver, lambda d: reasons(d) != before)
    assert len(driver.find_elements(By.CSS_SELECTOR, ".ovseg-why")[0].find_elements(By.TAG_NAME, "tr")) == 6
    assert not [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]

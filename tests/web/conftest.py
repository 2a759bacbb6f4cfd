"""A real Chromium and a scripted server for the tests of the browser chat."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

WAIT = 120  # seconds; only what never comes takes as long, on a busy machine too
HERE = Path(__file__).parent


def _module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"headrace_web_{name}", HERE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


_scripted = _module("scripted_server")


def _milliseconds(source: str, pattern: str) -> int:
    """A number that one of the page's sources has."""
    found = re.search(pattern, files("headrace.clients").joinpath("web", source).read_text())
    assert found, f"{source} has no {pattern}"
    return int(found[1].replace("_", ""))


# How long the page waits for a busy server or for a reader who has not clicked yet. The tests of these times have a
# clock of their own; elsewhere none of them may be over before the test has looked.
PATIENCE = (
    _milliseconds("chat.js", r"STOP_MS = ([\d_]+)"),
    _milliseconds("link.js", r"PROBE_MS = ([\d_]+)"),
    _milliseconds("notices.js", r"action \? ([\d_]+) : [\d_]+"),
    _milliseconds("notices.js", r"action \? [\d_]+ : ([\d_]+)"),
)
PATIENT = (
    f"const patience = new Set({json.dumps(PATIENCE)});"
    + """
const timer = window.setTimeout.bind(window), limit = AbortSignal.timeout.bind(AbortSignal);
const longer = (ms) => (patience.has(ms) ? 3_600_000 : ms);
window.setTimeout = (run, ms, ...given) => timer(run, longer(ms), ...given);
AbortSignal.timeout = (ms) => limit(longer(ms));
"""
)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where Chromium cannot be had, `make test` says so and sets HEADRACE_NO_BROWSER. Else its absence fails."""
    if os.environ.get("HEADRACE_NO_BROWSER") != "1":
        return
    ours = [item for item in items if HERE in item.path.parents]
    config.hook.pytest_deselected(items=ours)
    items[:] = [item for item in items if item not in ours]


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    """One headless Chromium for all tests; each test's server has its own port, hence its own storage."""
    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    profile = tmp_path_factory.mktemp("chromium")
    for flag in (
        "headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
        "disable-component-update", "disable-sync", "disable-dev-shm-usage", "force-color-profile=srgb",
        f"user-data-dir={profile}", "window-size=1180,820",
    ):  # fmt: skip
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    service = webdriver.ChromeService("/usr/bin/chromedriver")
    browser = webdriver.Chrome(options=options, service=service)
    browser.set_script_timeout(600)
    browser.set_page_load_timeout(600)
    browser.command_executor.client_config.timeout = 900
    browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": f"{{ {PATIENT} }}"})
    yield browser
    browser.quit()


@pytest.fixture
def server() -> Iterator[Any]:
    """A scripted server of this test alone."""
    scripted = _scripted.ScriptedServer()
    yield scripted
    scripted.stop()


@pytest.fixture
def milliseconds() -> Callable[[str, str], int]:
    r"""`milliseconds("thread.js", r"SPEAK_MS = ([\d_]+)")`: how long the page waits there."""
    return _milliseconds


@pytest.fixture
def turn() -> Callable[..., Any]:
    """Makes a Turn: `turn(["a ", "b"], hold_at=1)`."""
    return _scripted.Turn


class Page:
    """What a person does with the chat, and what they see. Everything waits for a condition, never for a time."""

    def __init__(self, driver: webdriver.Chrome, url: str) -> None:
        self.driver = driver
        self.url = url

    def open(self, fragment: str = "") -> Page:
        self.driver.get(self.url + fragment)
        self.until(lambda: self.js("return document.documentElement.dataset.ready"), "the page to start")
        return self

    def reload(self) -> Page:
        self.driver.refresh()
        self.until(
            lambda: self.js("return document.documentElement.dataset.ready"), "the page to start again"
        )
        return self

    def js(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def module(self, script: str, *arguments: Any) -> Any:
        """Run `script` as an async function body; its value comes back as JSON."""
        wrapped = (
            "const done = arguments[arguments.length - 1]; const given = [...arguments].slice(0, -1);"
            f"(async (...given) => {{ {script} }})(...given)"
            ".then((value) => done(JSON.stringify({ value: value ?? null })),"
            " (fault) => done(JSON.stringify({ fault: String(fault.stack ?? fault) })));"
        )
        answer = json.loads(self.driver.execute_async_script(wrapped, *arguments))
        assert "fault" not in answer, answer["fault"]
        return answer["value"]

    def until(self, holds: Callable[[], Any], what: str) -> Any:
        """Until `holds()`; an element that was drawn anew between two looks is looked for again."""
        waiting = WebDriverWait(
            self.driver, WAIT, poll_frequency=0.02, ignored_exceptions=[StaleElementReferenceException]
        )
        return waiting.until(lambda _: holds(), f"waited for {what}")

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def text(self, selector: str) -> str:
        return str(self.js("return document.querySelector(arguments[0])?.textContent ?? ''", selector))

    def click(self, selector: str) -> None:
        """Click the first one that is on screen, once it is."""

        def clicked() -> bool:
            for element in self.all(selector):
                if element.is_displayed():
                    element.click()
                    return True
            return False

        self.until(clicked, f"{selector} on screen")

    def connected(self) -> Page:
        self.until(lambda: self.one("#link").get_attribute("data-state") == "open", "a connection")
        return self

    def type(self, words: str, *, send: bool = True) -> None:
        self.one("#prompt").send_keys(words, *([Keys.ENTER] if send else []))

    def press(self, *keys: str) -> None:
        def pressed() -> bool:
            self.driver.switch_to.active_element.send_keys(*keys)
            return True

        self.until(pressed, "the focus")

    def fresh(self) -> None:
        """A new chat, by its key."""
        self.press(Keys.CONTROL, "k")
        self.until(lambda: not self.all(".message"), "an empty chat")

    def answers(self) -> list[str]:
        return list(
            self.js("return [...document.querySelectorAll('.assistant .body')].map((e) => e.textContent)")
        )

    def answer(self, words: str, index: int = -1) -> None:
        """Wait until an answer is exactly `words` and has ended."""
        self.until(
            lambda: self.answers() and self.answers()[index] == words,
            f"the answer {words!r}: {self.answers()}",
        )
        self.until(lambda: not self.all(".streaming"), "the end of the answer")

    def titles(self) -> list[str]:
        return list(
            self.js("return [...document.querySelectorAll('#conversations a')].map((e) => e.textContent)")
        )

    def cdp(self, command: str, **arguments: Any) -> Any:
        return self.driver.execute_cdp_cmd(command, arguments)


@pytest.fixture
def page(driver: webdriver.Chrome, server: Any) -> Iterator[Page]:
    """The chat at the scripted server, not opened yet. Afterwards: no script error, no breach of the page's CSP."""
    driver.get_log("browser")
    shown = Page(driver, server.url)
    yield shown
    driver.get("about:blank")
    for undo in ("Emulation.clearDeviceMetricsOverride", "Emulation.setEmulatedMedia"):
        driver.execute_cdp_cmd(undo, {})
    driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": False})
    faults = [entry for entry in driver.get_log("browser") if entry["source"] in ("javascript", "security")]
    assert not faults, faults

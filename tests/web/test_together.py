"""One running server, five kinds of clients, all streaming at the same time: page, terminal, openai over websocket,
openai over HTTP, curl. Steps land one by one until every one of them has shown text and none has ended."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest
from live_server import LiveServer
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

WAIT = 180  # seconds; only what never comes takes as long


@pytest.fixture
def live() -> Iterator[LiveServer]:
    server = LiveServer(gated=True)
    yield server
    server.stop()


class Client(threading.Thread):
    """Runs `read(self)`, which appends to `text` as it streams in."""

    def __init__(self, read: Callable[[Client], None]) -> None:
        super().__init__(daemon=True)
        self.read = read
        self.text = ""
        self.trouble: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self.read(self)
        except BaseException as error:
            self.trouble = error


def piped(command: list[str], stdin: str = "") -> Callable[[Client], None]:
    def read(client: Client) -> None:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(stdin.encode())
        process.stdin.close()
        while chunk := process.stdout.read1(4096):  # type: ignore[attr-defined]
            client.text += chunk.decode()
        assert process.wait() == 0

    return read


def test_page_terminal_openai_and_curl_stream_from_one_server_at_once(
    live: LiveServer, driver: webdriver.Chrome
) -> None:
    def over_websocket(client: Client) -> None:
        sdk = openai.OpenAI(base_url=f"{live.url}/v1", api_key="none")
        with sdk.responses.connect() as connection:
            connection.response.create(model="fake", input="over a websocket", max_output_tokens=400)
            for event in connection:
                if event.type == "response.output_text.delta":
                    client.text += event.delta
                if event.type in ("response.completed", "response.incomplete"):
                    break

    def over_http(client: Client) -> None:
        sdk = openai.OpenAI(base_url=f"{live.url}/v1", api_key="none")
        for chunk in sdk.chat.completions.create(
            model="fake", messages=[{"role": "user", "content": "over HTTP"}], max_tokens=400, stream=True
        ):
            client.text += chunk.choices[0].delta.content or ""

    body = '{"model":"fake","messages":[{"role":"user","content":"curl"}],"max_tokens":400,"stream":true}'
    curl = [
        "curl",
        "-sN",
        f"{live.url}/v1/chat/completions",
        "-H",
        "content-type: application/json",
        "-d",
        body,
    ]
    terminal = [
        sys.executable,
        "-P",
        "-m",
        "headrace.clients.cli",
        "chat",
        "--url",
        live.url,
        "--max-tokens",
        "400",
        "--patience",
        "120",
    ]
    clients = {
        "openai websocket": Client(over_websocket),
        "openai http": Client(over_http),
        "curl": Client(piped(curl)),
        "terminal": Client(piped(terminal, "from the terminal")),
    }
    driver.get(live.url)
    box = WebDriverWait(driver, WAIT).until(lambda d: d.find_element(By.CSS_SELECTOR, "textarea"))
    WebDriverWait(driver, WAIT).until(
        lambda d: d.execute_script("return document.documentElement.dataset.ready") and box.is_enabled()
    )
    box.send_keys("from the page", Keys.ENTER)

    def page_text() -> str:
        answers = driver.find_elements(By.CSS_SELECTOR, "article.assistant .body")
        return answers[-1].text if answers else ""

    def within(condition: Callable[[], Any], landings: int = 0) -> bool:
        """Until `condition` holds. At most `landings` steps land meanwhile: the answers must not run out."""
        deadline = time.monotonic() + WAIT
        while time.monotonic() < deadline:
            if condition():
                return True
            if landings:
                live.land()
                landings -= 1
        return False

    def in_batch() -> int:
        return int(live.ask(lambda app: len(app.scheduler.running)))

    def said() -> dict[str, Any]:
        return {name: (client.text, client.trouble) for name, client in clients.items()}

    # No step lands until all five are there, however long their programs take to start.
    assert within(lambda: live.ask(lambda app: sum(1 for _ in app.scheduler.reqs())) == 5), said()
    assert within(lambda: in_batch() == 5, landings=20), said()
    marks = {name: len(client.text) for name, client in clients.items()}
    page = len(page_text())

    def all_grew() -> bool:
        return len(page_text()) > page and all(len(c.text) > marks[name] for name, c in clients.items())

    assert within(all_grew, landings=100), said()
    assert in_batch() == 5, "all five answers are still in the same batch"
    assert not any(client.trouble for client in clients.values())
    live.open_gate()
    for client in clients.values():
        client.join(WAIT)
    assert not any(client.is_alive() for client in clients.values()), said()
    troubles = {name: client.trouble for name, client in clients.items() if client.trouble}
    assert not troubles
    assert clients["curl"].text.rstrip().endswith("data: [DONE]")

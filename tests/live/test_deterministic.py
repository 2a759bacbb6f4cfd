"""`--deterministic` through the whole server: equal receipts in any company, and a replay that says so."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from headrace.clients.client import Client, connect
from headrace.clients.replay import NOT_COMPARED, OTHER, SAME
from headrace.clients.replay import main as replay

ASKED = ("What is 3 plus 4?", "Tell me a story about a fox.", "Sort 9 3 7.", "Who are you?", "Spell: river")
COMMAND = [sys.executable, "-P", "-m", "headrace.server", "--port", "0", "--max-context", "1024"]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    command = [*COMMAND, "--deterministic", "--chunk-tokens", "16"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line.startswith("ready: "), line
        yield line.removeprefix("ready: ").strip()
    finally:
        process.kill()
        process.communicate()


async def receipt(client: Client, text: str, seed: int | None, **more: Any) -> dict[str, Any]:
    stream = await client.respond(
        text, seed=seed, temperature=1.2, max_output_tokens=24, receipt=True, extra=more
    )
    await stream.response()
    assert stream.receipt is not None
    return stream.receipt


async def test_receipts_are_equal_in_any_company(url: str) -> None:
    async with connect(url, open_timeout=120) as client:
        alone = [await receipt(client, text, seed) for seed, text in enumerate(ASKED)]
        crowd = [client.respond(text[::-1], max_output_tokens=30) for text in ASKED]
        found = await asyncio.gather(
            *(receipt(client, text, seed) for seed, text in enumerate(ASKED)), *crowd
        )
        assert found[: len(ASKED)] == alone
        other = await receipt(client, ASKED[1], 99)
    assert other["prompt"] == alone[1]["prompt"] and other["output"] != alone[1]["output"]
    assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", alone[0][part]) for part in ("weights", "computing"))


async def test_an_answer_is_replayed_from_its_receipt(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = tmp_path / "receipt.json"
    async with connect(url, open_timeout=120) as client:
        stream = await client.respond(ASKED[1], instructions="Be brief.", max_output_tokens=20, receipt=True)
        await stream.response()
    stream.save_receipt(saved)
    at = ["--url", url]
    assert await asyncio.to_thread(replay, [str(saved), *at]) == SAME, (
        "the seed that it drew by itself is in it"
    )
    assert "the same: " in capsys.readouterr().out
    said = json.loads(saved.read_text())
    said["request"]["temperature"] = 2.0
    saved.write_text(json.dumps(said))
    assert await asyncio.to_thread(replay, [str(saved), *at]) == OTHER
    assert "the answer has other tokens" in capsys.readouterr().out
    said["receipt"]["changed"] = True
    saved.write_text(json.dumps(said))
    assert await asyncio.to_thread(replay, [str(saved), *at]) == NOT_COMPARED
    assert "changed while it ran" in capsys.readouterr().err
    saved.write_text("[]")
    assert await asyncio.to_thread(replay, [str(saved), *at]) == NOT_COMPARED


def test_over_http_too(url: str) -> None:
    body = {"input": ASKED[0], "max_output_tokens": 8, "seed": 4, "model": "default", "x_receipt": True}
    request = urllib.request.Request(
        f"{url}/v1/responses", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as reply:
        found = json.load(reply)["x_receipt"]
    assert found["seed"] == "4" and found["output_tokens"] >= 1 and not found["changed"]

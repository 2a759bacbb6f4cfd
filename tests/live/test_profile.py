"""A profile of `headrace serve` with the model inside the package: the operations of its steps are in the file."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

# What runs natively is no operation of torch's, and in no profile.
COMMAND = [sys.executable, "-P", "-m", "headrace.server", "--port", "0", "--decode", "torch"]


def post(url: str, body: Any) -> str:
    asked = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(asked, timeout=120) as reply:
        told: str = reply.read().decode()
    return told


def test_the_trace_shows_what_the_steps_compute(tmp_path: Path) -> None:
    command = [*COMMAND, "--profile-dir", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line.startswith("ready: "), line
        url = line.removeprefix("ready: ").strip()
        post(f"{url}/start_profile", {"record_shapes": True})
        post(
            f"{url}/v1/completions",
            {"model": "default", "prompt": "Hello", "max_tokens": 4, "ignore_eos": True},
        )
        name = post(f"{url}/stop_profile", {}).removeprefix("Profile written: ").strip()
    finally:
        process.kill()
        process.communicate()
    events = json.loads(gzip.decompress((tmp_path / name).read_bytes()))["traceEvents"]
    operations = [event for event in events if event.get("cat") == "cpu_op"]
    assert len(operations) > 100 and "aten::add" in {event["name"] for event in operations}
    assert len({event["tid"] for event in operations}) == 1, "the one thread that computes"
    assert any("Input Dims" in event.get("args", {}) for event in operations)

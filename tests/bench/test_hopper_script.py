"""bench/hopper.sh where there is no GPU: its parts are found, and its server is started, measured and ended."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "bench" / "hopper.sh"
PARTS = ("setup", "check", "tune", "kernels", "step", "start", "serve", "sanitize", "soak")


def hopper(*parts: str, **settings: str) -> subprocess.CompletedProcess[str]:
    given = {
        "HEADRACE_PYTHON": sys.executable,
        "PATH": os.environ["PATH"],
        "HOME": os.environ.get("HOME", "/"),
    }
    return subprocess.run(
        ["bash", str(SCRIPT), *parts],
        env=given | settings,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def test_the_shell_reads_it() -> None:
    assert subprocess.run(["bash", "-n", str(SCRIPT)], check=False).returncode == 0


def test_its_help_names_every_part(tmp_path: Path) -> None:
    told = hopper(OUT=str(tmp_path))
    assert told.returncode == 2
    assert tuple(re.findall(r"^  ([a-z]+) {2,}", told.stdout, re.MULTILINE)[: len(PARTS)]) == PARTS
    for part in PARTS:
        assert f"\n{part}() {{" in SCRIPT.read_text()


def test_a_part_that_there_is_none_of(tmp_path: Path) -> None:
    told = hopper("check", "chekc", OUT=str(tmp_path))
    assert told.returncode == 2 and "there is no part chekc" in told.stdout
    assert "== check" not in told.stdout, "nothing runs before all names are known"


def test_serve_measures_a_server_and_ends_it(tmp_path: Path) -> None:
    told = hopper(
        "setup",
        "serve",
        "soak",
        OUT=str(tmp_path / "out"),
        SHAPES=str(tmp_path / "shapes"),
        MODELS="tiny",
        WEIGHTS="checkpoint",
        CELLS="single_8_4",
        TRANSPORTS="ws-responses sse-chat",
        WORKERS="1",
        REPEATS="1",
        SOAK_MODEL="tiny",
        SOAK_TOKENS="40",
        OMP_NUM_THREADS="1",
    )
    said = told.stdout
    assert "HEADRACE_PYTHON is set: nothing to install" in said, said + told.stderr
    assert re.search(r"tiny is ready after \d+ s", said), said + told.stderr
    for transport in ("ws-responses", "sse-chat"):
        assert re.search(rf"^tiny +single_8_4 +{transport} +[0-9.,]+", said, re.MULTILINE), said
        result = json.loads((tmp_path / "out" / f"tiny_single_8_4_{transport}.json").read_text())
        assert result["results"][0]["completed"] == 10 and result["results"][0]["failed"] == 0
    port = re.search(r"ready: http://127.0.0.1:(\d+)", (tmp_path / "out" / "serve_tiny.log").read_text())
    assert port is not None
    sockets = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    # Only those that listen: closed connections stay listed for a minute.
    listening = [words[1] for words in sockets if words[3] == "0A"]
    assert f"0100007F:{int(port[1]):04X}" not in listening, "the server is gone"
    # Forty tokens meet few of the states that a soak looks for, and the script says so.
    assert "never met" in said and "not all is well in: soak" in said and told.returncode == 1

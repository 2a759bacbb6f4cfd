"""Where a load run took place: the client's machine and what drives it. Without torch: it would be in the way."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CARD = (
    "name",
    "driver_version",
    "clocks.sm",
    "clocks.mem",
    "power.draw",
    "temperature.gpu",
    "ecc.mode.current",
)


def ask(*command: str) -> str:
    """What a program prints, "" if there is none or it fails."""
    if shutil.which(command[0]) is None:
        return ""
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    return done.stdout.strip() if done.returncode == 0 else ""


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def surroundings() -> dict[str, Any]:
    """Facts for the results file, by name."""
    found: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "git_rev": ask("git", "-C", str(ROOT), "describe", "--always", "--dirty")
        if (ROOT / ".git").exists()
        else "",
        "headrace": version("headrace"),
        "cpu": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "load_average": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
    }
    if cards := ask("nvidia-smi", f"--query-gpu={','.join(CARD)}", "--format=csv,noheader"):
        found["gpu"] = [
            dict(zip(CARD, (part.strip() for part in line.split(",")), strict=False))
            for line in cards.splitlines()
        ]
    return found

"""The checkpoint inside the package: where it lies and what it is. `headrace.bench.demo` makes it."""

from __future__ import annotations

from pathlib import Path

DEMO_ID = "headrace-demo"
DEMO_NOTICE = (
    "This is the demo model inside headrace: 14 million parameters, trained in minutes on made-up dialogues and "
    "pictures. It calculates, sorts, spells, tells little stories, calls tools and sees flat shapes and charts; of "
    "the world it knows next to nothing. For real answers, start: headrace serve MODEL"
)


def demo_folder() -> Path:
    """The model folder of the embedded checkpoint, in the installed package."""
    return Path(__file__).resolve().parent / "demo"

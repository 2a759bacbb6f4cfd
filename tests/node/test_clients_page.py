"""The JavaScript example of docs/clients.md, run by Node against a live server over the fake engine."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from live_server import LiveServer
from short_answers import EOS, until_newline

HERE = Path(__file__).parent
PAGE = (HERE.parents[1] / "docs" / "clients.md").read_text()


def test_the_example_answers_twice() -> None:
    (example,) = re.findall(r"^```js\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    server = LiveServer(choose=until_newline, eos=EOS)
    try:
        ran = subprocess.run(
            ["node", "--input-type=module", "--eval", example.replace("http://127.0.0.1:8000", server.url)],
            cwd=HERE,  # where the packages are
            capture_output=True,
            text=True,
            timeout=300,
        )
        server.baseline()
    finally:
        server.stop()
    assert ran.returncode == 0, ran.stderr
    # A chat completion and a response, each of 12 letters and blanks or more.
    assert re.fullmatch(r"[a-z ]{24,}", ran.stdout), ran.stdout

"""Compute an answer again from its receipt, and say whether it is the same, token by token.

    headrace replay receipt.json --url http://127.0.0.1:8000

The file holds `{"request": ..., "receipt": ...}`: the body of a response and the `x_receipt` of its last event (the
Python client writes it: `stream.save_receipt(path)`). The server must be --deterministic and have the same weights.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from headrace.clients.client import connect
from headrace.clients.errors import ClientError

SAME, OTHER, NOT_COMPARED = 0, 1, 2
# In the order in which they explain each other: with other weights, nothing behind it can be the same.
PARTS = {
    "weights": "the weights are others",
    "computing": "the machine, torch or the settings compute in another way",
    "seed": "the seed is another",
    "prompt": "the prompt became other tokens",
    "output_tokens": "the answer has another length",
    "output": "the answer has other tokens",
}


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two receipts, in words."""
    return [
        f"{words}: {before.get(part)} then, {now.get(part)} now"
        for part, words in PARTS.items()
        if before.get(part) != now.get(part)
    ]


def why_not(saved: Mapping[str, Any]) -> str:
    """Why the request of a receipt cannot be asked again by itself; "" if it can."""
    if not isinstance(saved.get("request"), dict) or not isinstance(saved.get("receipt"), dict):
        return 'the file does not hold {"request": ..., "receipt": ...}'
    if saved["receipt"].get("changed"):
        return "its parameters were changed while it ran, or it kept what another answer had said"
    if saved["request"].get("type") == "x.fork":
        return "it is a fork: replay the answer that it began as"
    return ""


async def replay(saved: Mapping[str, Any], url: str, api_key: str | None = None) -> dict[str, Any]:
    """The receipt of the same request, asked again at `url`. Raises ClientError, or ValueError if the answer had
    none."""
    request = {name: value for name, value in saved["request"].items() if name not in ("type", "stream_id")}
    given = request.pop("input", "")
    seed = int(saved["receipt"]["seed"])
    request["seed"] = (
        seed - (1 << 64) if seed >= 1 << 63 else seed
    )  # the same 64 bits, as the API spells them
    async with connect(url, api_key, model=request.pop("model", None)) as client:
        stream = await client.respond(given, extra={**request, "x_receipt": True, "store": False})
        await stream.response()
        found = stream.receipt
    if found is None:
        raise ValueError("the server gave no receipt")
    return found


def main(argv: Sequence[str]) -> int:
    """0: the same in every token. 1: it differs. 2: it could not be asked."""
    parser = argparse.ArgumentParser(
        prog="headrace replay", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, help="what save_receipt wrote")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="the server (default: %(default)s)")
    parser.add_argument("--api-key", default=None, help="its key, if it has one")
    options = parser.parse_args(argv)
    try:
        saved = json.loads(options.file.read_text())
        reason = why_not(saved) if isinstance(saved, dict) else "it holds no object"
        if reason:
            raise ValueError(reason)
        now = asyncio.run(replay(saved, options.url, options.api_key))
    except (OSError, ValueError, ClientError) as error:
        print(f"headrace replay: {options.file}: {error}", file=sys.stderr)
        return NOT_COMPARED
    found = differences(saved["receipt"], now)
    for line in found:
        print(line)
    if not found:
        print(f"the same: {now['output_tokens']} tokens, {now['output']}")
    return OTHER if found else SAME

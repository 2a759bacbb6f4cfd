"""What a deterministic engine computed, in a few hashes: enough to compute it again and see that it is the same.

Answers with equal `weights`, `computing`, `seed`, sampling parameters and `prompt` have equal `output`, whatever
else the server was doing.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from headrace.runtime.interface import ModelCard
    from headrace.runtime.stream import TokenStream


class Receipt(msgspec.Struct, frozen=True, kw_only=True):
    """Digests are `sha256:` and 64 hexadecimal digits. The seed has up to 64 bits, more than a JSON number keeps in
    every language, so it is a string. changed: parameters were changed while the answer ran, or it is
    a fork that kept what another one said."""

    weights: str
    computing: str
    seed: str
    prompt: str
    output: str
    output_tokens: int
    changed: bool = False


def receipt_of(stream: TokenStream, card: ModelCard) -> Receipt | None:
    """The receipt of an answer that has ended; None if it never began, or if the engine promises nothing."""
    req = stream.req
    if req is None or not card.computing:
        return None
    begin = stream.prompt_tokens
    return Receipt(
        weights=card.weights,
        computing=card.computing,
        seed=str(req.params.seed),
        prompt=digest_ids(req.tokens[:begin], [span.image.key for span in req.spans]),
        output=digest_ids(req.tokens[begin : begin + stream.head]),
        output_tokens=stream.head,
        changed=req.changed_at > 0 or req.prompt_len > begin,  # a fork's own prompt reaches into its answer
    )


def digest_ids(ids: Iterable[int], pictures: Iterable[int] = ()) -> str:
    """Of token ids as 64-bit little-endian numbers, and the keys of the pictures that stand among them."""
    numbers = array("q", ids)
    found = hashlib.sha256(numbers.tobytes())
    for key in pictures:
        found.update(f"picture {key}\n".encode())
    return f"sha256:{found.hexdigest()}"


def digest_facts(facts: Mapping[str, Any]) -> str:
    """Of facts that JSON can say."""
    return f"sha256:{hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()}"


def digest_files(paths: Iterable[Path]) -> str:
    """Of the names and contents of files, in the order of their names. Reads all of them."""
    found = hashlib.sha256()
    for path in sorted(paths, key=lambda path: path.name):
        with path.open("rb") as file:
            found.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return f"sha256:{found.hexdigest()}"

"""What the items of a response are called. Knows ids; knows no item.

An item's id holds that of its response, and with it the response's 128 random bits: where an item is, nobody has to
remember, on disk or in memory.

    resp_<32 hex>   the response
    msg_<32 hex>o0  its first output item (rs_, fc_ and ctc_ alike)
    msg_<32 hex>i0  its first input item, unless the client gave that an id
"""

from __future__ import annotations

import re

_RESPONSE = "resp_"
_OURS = re.compile(r"\A[a-z]{1,8}_([0-9a-f]{32})[io][0-9]{1,9}\Z")
_PREFIXES = {
    "reasoning": "rs",
    "function_call": "fc",
    "custom_tool_call": "ctc",
    "function_call_output": "fco",
    "custom_tool_call_output": "ctco",
    "compaction": "cmp",
}


def output_id(prefix: str, response_id: str, index: int) -> str:
    """The id of output item `index`."""
    return f"{prefix}_{response_id.removeprefix(_RESPONSE)}o{index}"


def input_id(kind: str | None, response_id: str, index: int) -> str:
    """The id of input item `index`, whose type is `kind`."""
    return f"{_PREFIXES.get(kind or '', 'msg')}_{response_id.removeprefix(_RESPONSE)}i{index}"


def response_of(item_id: str) -> str | None:
    """The id of the response that the item belongs to; None for an id that was not made here."""
    found = _OURS.match(item_id)
    return None if found is None else _RESPONSE + found[1]

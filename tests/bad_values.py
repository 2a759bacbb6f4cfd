"""Values that no field should take, for every kind of field; and good requests with damage in them."""

from __future__ import annotations

import random
from typing import Any

import msgspec.inspect as shapes

NUMBERS = (
    "-1", "0", "1", "2", "17", "21", "257", "-0.0", "1e-320", "5e-324", "1e-5", "0.5", "1.0", "2.5", "1e6", "-1e6",
    "2147483647", "2147483648", "4294967296", "9223372036854775807", "9223372036854775808",
    "-9223372036854775808", "-9223372036854775809", "18446744073709551616", "1e308", "1e309", "-1e999",
    "9" * 400, "NaN", "Infinity", "-Infinity", '"1"', '""', "true", "false", "[]", "{}", "[1]", "null",
    "0x1", "01", "+1", ".5",
)  # fmt: skip
TEXTS = (
    '"' + "a" * 65 + '"', '"a b"', '"a\\n"', '"\\u0000"', '"é"', '""', '"' + "x" * 100_000 + '"', '"\\ud800"',
    "5", "true", "[]", "{}", "null", '["a"]', '"../../etc/passwd"', '"{{7*7}}"', '"%s%n"',
)  # fmt: skip
FREE = (
    "null", "[]", "{}", "1", '"auto"', '"none"', '"required"', "[null]",
    '[{"type":"function"}]', '[{"type":5}]', '[{"type":"zork"}]',
    '{"type":"function","name":"f"}', '{"type":"json_object"}',
    '{"type":"json_schema","json_schema":{"pattern":"(a+)+b"}}',
    '{"$ref":"#"}', "[" * 33 + "]" * 33, "[" * 100 + "]" * 100, '{"a":' * 999 + "1" + "}" * 999,
    "[" * 100_000, "tru", '"\\x"',
)  # fmt: skip


def kinds(node: shapes.Type) -> set[str]:
    """Which families of bad values make sense for a field."""
    match node:
        case shapes.Metadata():
            return kinds(node.type)
        case shapes.UnionType():
            return set().union(*(kinds(member) for member in node.types))
        case shapes.IntType() | shapes.FloatType() | shapes.BoolType():
            return {"number"}
        case shapes.StrType() | shapes.LiteralType():
            return {"text"}
        case shapes.NoneType():
            return set()
        case _:
            return {"free", "text", "number"}


def mutate(rng: random.Random, value: Any, depth: int = 0) -> Any:
    """The value with something wrong, or something odd, somewhere in it."""
    odd = [
        None,
        True,
        -1,
        0,
        1e300,
        "",
        "x",
        [],
        {},
        [[]],
        {"a": {}},
        "\u0000",
        1 << 70,
        "é" * 50,
        "<|im_end|>",
    ]
    roll = rng.random()
    if roll < 0.25 or depth > 4:
        return rng.choice(odd)
    if isinstance(value, dict) and value:
        out = dict(value)
        key = rng.choice(list(out))
        if roll < 0.35:
            del out[key]
        elif roll < 0.45:
            out[rng.choice(["x_a", "zork", "type", "role", "tools", "n", "stop", "seed"])] = rng.choice(odd)
        else:
            out[key] = mutate(rng, out[key], depth + 1)
        return out
    if isinstance(value, list) and value:
        out_list = list(value)
        at = rng.randrange(len(out_list))
        if roll < 0.4:
            return out_list * rng.choice([0, 2, 40])
        out_list[at] = mutate(rng, out_list[at], depth + 1)
        return out_list
    return rng.choice(odd)

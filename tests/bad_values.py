"""Values that a request field must not take, as JSON text, by what the field is."""

from __future__ import annotations

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

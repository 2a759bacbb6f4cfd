"""Answers into typed pieces, one model family per file."""

if not __name__.startswith("headrace."):
    raise ImportError(
        f"{__name__!r} was imported from a folder of the headrace source tree; install it with "
        "'pip install -e .' and import 'headrace.runtime.parsers' instead"
    )

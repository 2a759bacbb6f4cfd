"""A terminal a person sits at: lines in with editing and history, text out that cannot drive the terminal."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TextIO

try:
    import readline
except ImportError:  # a Python without it: lines come without editing and history
    readline = None  # type: ignore[assignment]

HISTORY_LENGTH = 1000
PROMPT, CONTINUED = "> ", ". "


def _replacements() -> dict[int, str]:
    """What a terminal would act on, and what is shown instead: a picture of the control character, so that nothing
    is hidden either."""
    table = {code: chr(0x2400 + code) for code in range(0x20)}
    table |= dict.fromkeys(range(0x80, 0xA0), "\N{REPLACEMENT CHARACTER}")  # C1: CSI, OSC in one byte
    table[0x7F] = "\N{SYMBOL FOR DELETE}"
    for kept in "\n\t":
        del table[ord(kept)]
    table[ord("\r")] = ""  # would let a line overwrite itself; in "\r\n" it says nothing
    # Embeddings, overrides and isolates reorder what stands around them: text could pose as something else.
    table |= dict.fromkeys((*range(0x202A, 0x202F), *range(0x2066, 0x206A)), "")
    table |= {0x2028: "\n", 0x2029: "\n"}
    table |= dict.fromkeys(range(0xD800, 0xE000), "\N{REPLACEMENT CHARACTER}")
    return table


_TABLE = _replacements()


def harmless(text: str) -> str:
    """`text` without anything that a terminal obeys: no escape sequence survives, also none that is spread over
    several calls, because no single character of one passes."""
    return text.translate(_TABLE)


class Terminal:
    """Reads a person's messages and shows answers. Colour only where the terminal has it and NO_COLOR is unset."""

    def __init__(self, out: TextIO = sys.stdout) -> None:
        self._out = out
        self._colour = "NO_COLOR" not in os.environ and os.environ.get("TERM", "dumb") != "dumb"
        self._at_line_start = True
        self._history = _history_file()
        if readline is not None:
            readline.set_history_length(HISTORY_LENGTH)
            try:
                readline.read_history_file(self._history)
            except OSError:
                pass  # none yet, or not ours to read: history starts empty

    def show(self, text: str) -> None:
        """Append model output, made harmless."""
        text = harmless(text)
        if text:
            self._at_line_start = text.endswith("\n")
            self._out.write(text)
            self._out.flush()

    def end_line(self) -> None:
        """What follows starts on a line of its own."""
        if not self._at_line_start:
            self.show("\n")

    def note(self, text: str) -> None:
        """A remark of the program, dim, on a line of its own."""
        self.end_line()
        text = harmless(text)
        self._out.write(f"\x1b[2m{text}\x1b[0m\n" if self._colour else f"{text}\n")
        self._out.flush()

    def ask(self) -> str:
        """The next message of the person. A line that ends in a backslash goes on; lines between two lines of
        triple quotes are one message. Raises EOFError and KeyboardInterrupt."""
        self.end_line()
        line = self._line(PROMPT)
        if line.strip() == '"""':
            lines: list[str] = []
            while (line := self._line(CONTINUED)).strip() != '"""':
                lines.append(line)
            return "\n".join(lines)
        lines = [line]
        while lines[-1].endswith("\\"):
            lines[-1] = lines[-1][:-1]
            lines.append(self._line(CONTINUED))
        return "\n".join(lines)

    def save_history(self) -> None:
        """Keep the lines for the next time, readable for their writer alone."""
        if readline is None:
            return
        try:
            self._history.parent.mkdir(parents=True, exist_ok=True)
            self._history.touch(mode=0o600)
            readline.write_history_file(self._history)
        except OSError as error:
            self.note(f"the history was not saved: {error}")

    def _line(self, prompt: str) -> str:
        self._out.flush()
        if self._colour and readline is not None:
            # \x01 and \x02 tell readline that what is between takes no room.
            prompt = f"\x01\x1b[1m\x02{prompt}\x01\x1b[0m\x02"
        return input(prompt)


def _history_file() -> Path:
    state = os.environ.get("XDG_STATE_HOME")
    return (Path(state) if state else Path.home() / ".local" / "state") / "headrace" / "history"

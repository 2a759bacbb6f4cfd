"""Settings of a workload, and the drawing of its requests from them and a seed."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Literal

import msgspec

from headrace.bench.prompts import PromptKind, Prompts, Turn
from headrace.bench.record import Planned


class WorkloadError(ValueError):
    """Settings that make no workload; the message is for the person who wrote them."""


class WorkloadSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What can be set. Seconds, requests per second, tokens.

    Of every workload: input_tokens (of every turn, shared prefix included), output_tokens, lengths ("exact";
    "uniform": from least_tokens to these; "lognormal": these are the medians, with sigma, cut to
    least_tokens..most_tokens), shared_prefix_tokens, turns, prompt ("ids" for transports that carry them; "bytes":
    exact where a token is a byte; "words": tokens_per_word and template_tokens as `prompts.calibrate` found them),
    first_id and end_id, file (JSON lines of {"prompt": text or ids, "output_tokens": n}, in place of all these).

    concurrency: streams that run at once. requests: how many (0: the shape's own number). duration: time-based
    instead. rate, final_rate: arrivals. burst, every: how many at one instant, and how often. long_tokens,
    long_output_tokens: the prompts that interfere. slow: streams that read slowly (0: half), read_pause: for how
    long after each token. cut_after: tokens after which clients of a storm leave. typing_rate: tokens that a person
    types per second.
    """

    input_tokens: int = 512
    output_tokens: int = 256
    lengths: Literal["exact", "uniform", "lognormal"] = "exact"
    sigma: float = 0.5
    least_tokens: int = 16
    most_tokens: int = 16384
    shared_prefix_tokens: int = 0
    turns: int = 1
    prompt: PromptKind = "ids"
    first_id: int = 16
    end_id: int = 256  # ids below exist in every vocabulary
    tokens_per_word: float = 1.0
    template_tokens: float = 0.0
    file: str = ""

    concurrency: int = 8
    requests: int = 0
    duration: float = 0.0
    rate: float = 10.0
    final_rate: float = 40.0
    burst: int = 16
    every: float = 2.0
    long_tokens: int = 8192
    long_output_tokens: int = 16
    slow: int = 0
    read_pause: float = 0.2
    cut_after: int = 16
    typing_rate: float = 4.0


class FileLine(msgspec.Struct, forbid_unknown_fields=True):
    """One line of a workload file. Without output_tokens, those of the settings."""

    prompt: str | list[int]
    output_tokens: int | None = None


class Draw:
    """One plan being made: numbers requests in order and draws each from a generator of its own."""

    def __init__(self, settings: WorkloadSettings, seed: int) -> None:
        self.settings = settings
        self.seed = seed
        self.number = 0
        try:
            self.prompts = Prompts(
                settings.prompt,
                first_id=settings.first_id,
                end_id=settings.end_id,
                tokens_per_word=settings.tokens_per_word,
                template_tokens=settings.template_tokens,
            )
        except ValueError as error:
            raise WorkloadError(str(error)) from None
        self.shared: Turn | None = None
        if settings.shared_prefix_tokens:
            self.shared = self.prompts.draw_shared(settings.shared_prefix_tokens, self.rng("shared"))
        self.lines = read_file(settings) if settings.file else None

    def rng(self, what: object) -> random.Random:
        """A generator that depends on the seed and on `what` alone."""
        return random.Random(f"{self.seed}/{what}")

    def request(self, **fields: object) -> Planned:
        """The next request, with prompts and lengths as the settings say; `fields` are those of Planned."""
        number = self.number
        self.number += 1
        rng = self.rng(number)
        if self.lines is not None:
            if number >= len(self.lines):
                raise WorkloadError(
                    f"{self.settings.file} holds {len(self.lines)} requests and more are sent; "
                    "one sent twice would measure the prefix cache"
                )
            line = self.lines[number]
            prompt = line.prompt if isinstance(line.prompt, str) else tuple(line.prompt)
            turns: tuple[Turn, ...] = (prompt,)
            output = line.output_tokens or self.settings.output_tokens
        else:
            turns = tuple(self.turn(rng, first=turn == 0) for turn in range(self.settings.turns))
            output = self.length(self.settings.output_tokens, rng)
        planned = {"number": number, "turns": turns, "output_tokens": output} | fields
        return Planned(**planned)  # type: ignore[arg-type]

    def prompt_of(self, tokens: int) -> tuple[Turn]:
        """A single turn of exactly this many tokens for the next request, apart from the settings' lengths."""
        return (self.prompts.draw(tokens, self.rng(f"{self.number}/long")),)

    def turn(self, rng: random.Random, first: bool) -> Turn:
        return self.prompts.draw(self.turn_length(rng, first), rng, self.shared if first else None)

    def turn_length(self, rng: random.Random, first: bool) -> int:
        """Tokens of a turn. Only the part that is not shared varies, and it is never empty."""
        shared = self.settings.shared_prefix_tokens if first else 0
        return shared + self.length(self.settings.input_tokens - shared, rng)

    def length(self, tokens: int, rng: random.Random) -> int:
        least, most = self.settings.least_tokens, self.settings.most_tokens
        match self.settings.lengths:
            case "exact":
                return tokens
            case "uniform":
                return rng.randint(min(least, tokens), tokens)
            case "lognormal":
                drawn = round(rng.lognormvariate(math.log(tokens), self.settings.sigma))
                return max(least, min(most, drawn))


def read_file(settings: WorkloadSettings) -> list[FileLine]:
    """All lines of the workload file. WorkloadError names the line that is wrong."""
    try:
        content = Path(settings.file).read_bytes()
    except OSError as error:
        raise WorkloadError(f"{settings.file}: {error.strerror}") from None
    lines = []
    for number, raw in enumerate(content.splitlines(), 1):
        if not raw.strip():
            continue
        try:
            line = msgspec.json.decode(raw, type=FileLine)
        except msgspec.DecodeError as error:
            raise WorkloadError(f"{settings.file}, line {number}: {error}") from None
        if not line.prompt or (line.output_tokens is not None and line.output_tokens < 1):
            raise WorkloadError(f"{settings.file}, line {number}: an empty prompt, or output_tokens below 1")
        lines.append(line)
    if not lines:
        raise WorkloadError(f"{settings.file} holds no request")
    return lines

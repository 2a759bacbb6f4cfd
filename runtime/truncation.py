"""A conversation that is too long, made to fit by leaving out its oldest turns. Knows messages and lengths only."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from headrace.runtime.refusal import Refusal

if TYPE_CHECKING:
    from headrace.runtime.ask import Ask, Message
    from headrace.runtime.interface import Prompt, Prompter

ANSWER_ROOM = 1024  # tokens kept free for an answer whose length the client did not bound


def prepare_within(prompter: Prompter, ask: Ask, limit: int) -> Prompt:
    """The prompt of `ask`. With `drop_oldest`, whole turns leave from the front until prompt and answer are at most
    `limit` tokens: a turn begins with a user's message, so no tool's output is parted from its call. Leading
    system messages and the last turn stay; Refusal("context_length_exceeded") if even they are too long."""
    if not ask.drop_oldest or ask.messages is None:
        return prompter.prepare(ask)
    messages = ask.messages
    lead = next((i for i, message in enumerate(messages) if message.role != "system"), len(messages))
    starts = [i for i in range(lead + 1, len(messages)) if messages[i].role == "user"]
    room = limit - (ask.max_tokens or min(ANSWER_ROOM, limit // 4))

    def without(dropped: int) -> tuple[Message, ...]:
        return messages if dropped == 0 else messages[:lead] + messages[starts[dropped - 1] :]

    def attempt(dropped: int) -> Prompt | None:
        try:
            prompt = prompter.prepare(dataclasses.replace(ask, messages=without(dropped)))
        except Refusal as error:
            if error.code == "context_length_exceeded":
                return None
            raise
        return prompt if len(prompt.ids) <= room else None

    if (whole := attempt(0)) is not None:
        return whole
    # Fewer turns are fewer tokens: the fewest that must go are found by halving, with few renderings.
    low, high, best = 1, len(starts), None
    while low <= high:
        middle = (low + high) // 2
        prompt = attempt(middle)
        if prompt is None:
            low = middle + 1
        else:
            best, high = prompt, middle - 1
    if best is not None:
        return best
    # Nothing helps: what remains is judged as any other prompt is, and the refusal says by how much it is too long.
    return prompter.prepare(dataclasses.replace(ask, messages=without(len(starts))))

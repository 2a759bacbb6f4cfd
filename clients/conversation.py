"""What was said between a person and a model, and how the next question is asked. Knows the client, no terminal."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from headrace.clients.client import Client
from headrace.clients.errors import ServerRefused
from headrace.clients.stream import ResponseStream


@dataclass(slots=True)
class Turn:
    """One question with its answer. `id` continues the conversation after it; None: it cannot be continued."""

    question: str
    answer: str = ""
    id: str | None = None


@dataclass(slots=True)
class Conversation:
    """What was said so far, and how answers are asked for."""

    instructions: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    turns: list[Turn] = field(default_factory=list)

    async def ask(self, client: Client, question: str) -> ResponseStream:
        """Ask the next question. Continues on the server's memory, or says everything again if that is gone."""
        previous = self.turns[-1].id if self.turns else None
        if previous is not None or not self.turns:
            try:
                return await client.respond(
                    question, previous=previous, instructions=self.instructions, **self.settings
                )
            except ServerRefused as refused:
                if refused.code != "previous_response_not_found":
                    raise
        said = [
            {"role": role, "content": text}
            for turn in self.turns
            for role, text in (("user", turn.question), ("assistant", turn.answer))
            if text
        ]
        said.append({"role": "user", "content": question})
        return await client.respond(said, instructions=self.instructions, **self.settings)

    def written(self) -> str:
        """The conversation as Markdown."""
        parts = [f"> {self.instructions}\n"] if self.instructions else []
        for turn in self.turns:
            parts.append(f"## You\n\n{turn.question}\n\n## Answer\n\n{turn.answer}\n")
        return "\n".join(parts)

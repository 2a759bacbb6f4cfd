"""`headrace chat`: a conversation in the terminal, or one question from a pipe. Knows client and terminal."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from headrace.clients.answer import Answer, LoopThread
from headrace.clients.client import Client, connect
from headrace.clients.conversation import Conversation
from headrace.clients.errors import ClientError
from headrace.clients.terminal import Terminal, harmless

COMMANDS = """\
/help            this list
/new             forget the conversation and start another
/system TEXT     set the system prompt (no TEXT: show it; "-": remove it)
/retry           ask the last question again
/save FILE       write the conversation to a file
/quit            leave (also Ctrl-D)

A line that ends in \\ goes on in the next one; lines between two lines of \"\"\" are one message.
Ctrl-C stops an answer; pressed again, or twice at the prompt, it leaves."""


class Chat:
    """The dialogue between a terminal and a connected client."""

    def __init__(
        self, loop: LoopThread, client: Client, conversation: Conversation, terminal: Terminal
    ) -> None:
        self._loop = loop
        self._client = client
        self._conversation = conversation
        self._terminal = terminal

    def run(self) -> int:
        """Talk until the person leaves."""
        interrupted = False
        while True:
            try:
                message = self._terminal.ask()
                interrupted = False
                if message.lstrip().startswith("/"):
                    if not self._command(message.strip()):
                        return 0
                elif message.strip():
                    self._answer(message)
            except EOFError:
                self._terminal.show("\n")
                return 0
            except KeyboardInterrupt:
                self._terminal.show("\n")
                if interrupted:
                    return 130
                interrupted = True
                self._terminal.note("Ctrl-C again leaves")

    def _command(self, line: str) -> bool:
        """Carry out a command; False if it was the last."""
        name, _, rest = line.partition(" ")
        rest = rest.strip()
        conversation, note = self._conversation, self._terminal.note
        match name:
            case "/quit" | "/exit" | "/q":
                return False
            case "/help" | "/?":
                note(COMMANDS)
            case "/new":
                conversation.turns.clear()
                note("a new conversation")
            case "/system":
                if rest:
                    conversation.instructions = None if rest == "-" else rest
                note(f"system prompt: {conversation.instructions or '(none)'}")
            case "/retry":
                self._retry()
            case "/save":
                self._save(rest)
            case _:
                note(f"there is no command {name}; /help lists them")
        return True

    def _retry(self) -> None:
        turns = self._conversation.turns
        if not turns:
            self._terminal.note("nothing was asked yet")
            return
        last = turns.pop()
        left = len(turns)
        self._answer(last.question)
        if len(turns) == left:  # refused: the old answer stands
            turns.append(last)

    def _save(self, name: str) -> None:
        if not name:
            self._terminal.note("usage: /save FILE")
            return
        try:
            with Path(name).expanduser().open("x", encoding="utf-8") as file:
                file.write(self._conversation.written())
        except OSError as error:
            self._terminal.note(f"not saved: {error.strerror}: {name}")
        else:
            self._terminal.note(f"saved to {name}")

    def _answer(self, question: str) -> None:
        answer = Answer(self._loop, self._client, self._conversation, question)
        try:
            with answer:
                for text in answer:
                    self._terminal.show(text)
        except ClientError as error:
            self._terminal.note(f"error: {error}")
        else:
            self._terminal.note(answer.stats())


def main(argv: list[str]) -> int:
    """Run the chat; returns the exit status."""
    args = _parser().parse_args(argv)
    settings = {
        name: value
        for name, value in (
            ("temperature", args.temperature),
            ("top_p", args.top_p),
            ("max_output_tokens", args.max_tokens),
        )
        if value is not None
    }
    conversation = Conversation(args.system, settings)
    talking = not args.question and sys.stdin.isatty() and sys.stdout.isatty()
    question = " ".join(args.question)
    if not talking and not question:
        question = sys.stdin.read()
        if not question.strip():
            print("headrace chat: the question is empty", file=sys.stderr)
            return 2
    try:
        with LoopThread() as loop:
            client_block = connect(args.url, args.api_key, model=args.model, open_timeout=args.patience)
            client = loop.run(client_block.__aenter__())
            try:
                if talking:
                    return _talk(loop, client, conversation)
                return _say_once(loop, client, conversation, question)
            finally:
                loop.run(client_block.__aexit__(None, None, None))
    except (ClientError, ValueError) as error:
        print(f"headrace chat: {harmless(str(error))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _talk(loop: LoopThread, client: Client, conversation: Conversation) -> int:
    terminal = Terminal()
    terminal.note(f"{client.model} at {client.http_url}; /help lists the commands")
    try:
        return Chat(loop, client, conversation, terminal).run()
    finally:
        terminal.save_history()


def _say_once(loop: LoopThread, client: Client, conversation: Conversation, question: str) -> int:
    """The answer and nothing else on standard output, ending in a newline."""
    answer = Answer(loop, client, conversation, question)
    text = "\n"
    try:
        with answer:
            for text in map(harmless, answer):
                sys.stdout.write(text)
                sys.stdout.flush()
        if not text.endswith("\n"):
            sys.stdout.write("\n")
            sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read has enough. Point the descriptor elsewhere, or the interpreter complains when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 130 if answer.stopped else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="headrace chat",
        description="Talk to a running headrace server (or any server of the OpenAI Responses websocket).",
        epilog="With a QUESTION, or with text piped in, the answer is printed and nothing else. "
        "Without, a conversation begins; /help in it lists its commands.",
    )
    parser.add_argument("question", nargs="*", metavar="QUESTION", help="ask this one thing")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="server address [%(default)s]")
    parser.add_argument(
        "--api-key",
        default=os.environ.get("HEADRACE_API_KEY"),
        metavar="KEY",
        help="key of the server [the environment's HEADRACE_API_KEY, where `ps` does not show it]",
    )
    parser.add_argument("--model", metavar="NAME", help="model name [the first that the server offers]")
    parser.add_argument(
        "--patience",
        type=float,
        default=10.0,
        metavar="SECONDS",
        help="wait so long for the server to answer [%(default)g]",
    )
    parser.add_argument("--system", metavar="TEXT", help="system prompt")
    parser.add_argument("--temperature", type=float, metavar="T", help="0 is greedy [the model's default]")
    parser.add_argument("--top-p", type=float, metavar="P", help="[the model's default]")
    parser.add_argument("--max-tokens", type=int, metavar="N", help="longest answer [the server's default]")
    return parser

"""SEC-47, SEC-23: damaged tokenizer files end in one clean error, and hostile text costs linear time."""

from __future__ import annotations

import json
import random
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from headrace.runtime.checkpoint import CheckpointError
from headrace.runtime.interface import Ask
from headrace.runtime.prompt import FolderPrompter
from headrace.runtime.refusal import Refusal
from headrace.runtime.special import SpecialStrings
from headrace.runtime.tokenizer import FolderTokenizer

JUNK: list[Any] = [
    None,
    True,
    -1,
    0,
    1 << 40,
    1.5,
    "",
    "x",
    "\ufdd0",
    [],
    {},
    [[]],
    {"type": "Nope"},
    "\u2581" * 9,
]


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a JSON value, except that of a large table only the first few entries are looked at."""
    found = [path] if path else []
    entries: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        entries = list(value.items())
    elif isinstance(value, list):
        entries = list(enumerate(value))
    for key, each in entries[:6]:
        found += places(each, (*path, key))
    return found


def mutated(source: dict[str, Any], generator: random.Random) -> dict[str, Any]:
    """A copy with one to three values replaced, removed or doubled."""
    copy = json.loads(json.dumps(source))
    for _ in range(generator.randint(1, 3)):
        path = generator.choice(places(copy))
        parent = copy
        for key in path[:-1]:
            parent = parent[key]
        action = generator.random()
        if action < 0.7:
            parent[path[-1]] = generator.choice(JUNK)
        elif action < 0.9:
            del parent[path[-1]]
        elif isinstance(parent, list):
            parent.append(parent[path[-1]])
    return copy


@pytest.mark.parametrize("name", ["llama3", "llama2"])
def test_mutated_tokenizer_files(name: str, models_by_name: dict[str, Any], tmp_path: Path) -> None:
    """300 mutations: the file still works, or CheckpointError says why not. Nothing else comes out."""
    source = json.loads((models_by_name[name].folder / "tokenizer.json").read_text())
    generator = random.Random(47)
    sentences = []
    for _ in range(150):
        (tmp_path / "tokenizer.json").write_text(json.dumps(mutated(source, generator)))
        try:
            prompter = FolderPrompter(tmp_path, 1000, 1000)
        except CheckpointError as error:
            sentences.append(str(error))
            continue
        try:
            ids = prompter.prepare(Ask(prompt="hello <s> the wave")).ids
            prompter.detokenize(list(ids))
        except Refusal:
            pass
    assert len(sentences) > 50
    assert all(0 < len(each) < 1000 for each in sentences)


@pytest.mark.parametrize("cut", [0, 1, 100, 5000, -1])
def test_truncated_tokenizer_files(cut: int, models_by_name: dict[str, Any], tmp_path: Path) -> None:
    data = (models_by_name["llama2"].folder / "tokenizer.json").read_bytes()
    (tmp_path / "tokenizer.json").write_bytes(data[:cut])
    with pytest.raises(CheckpointError):
        FolderTokenizer(tmp_path)


@pytest.mark.parametrize(
    "data",
    [
        b'{"decoder":[}}}',
        b"[]",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"model":{"type":"WordPiece","vocab":{}}}',
        b"null",
    ],
)
def test_files_that_are_no_tokenizer(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(data)
    with pytest.raises(CheckpointError):
        FolderTokenizer(tmp_path)


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        FolderTokenizer(tmp_path)


def test_a_tokenizer_that_cannot_keep_text_apart_is_refused(
    models_by_name: dict[str, Any], tmp_path: Path
) -> None:
    """If the model part itself can produce a special token from text, no shield helps: told at load."""
    source = json.loads((models_by_name["gpt2"].folder / "tokenizer.json").read_text())
    source["added_tokens"].append(
        {"content": "hello", "id": source["model"]["vocab"]["hello"], "special": True}
    )
    (tmp_path / "tokenizer.json").write_text(json.dumps(source))
    with pytest.raises(CheckpointError, match="ordinary text"):
        FolderTokenizer(tmp_path)


def test_longest_match_first() -> None:
    special = SpecialStrings(["<s>", "<s>>", "<", "ab", "abc", "b", "  "])
    assert special._pattern is not None
    text = "<s>><s> abcab b"
    assert [hit.group() for hit in special._pattern.finditer(text)] == ["<s>>", "<s>", "abc", "ab", "b"]
    assert not special.spelled("a  \n")


@pytest.mark.parametrize(
    "kind", ["<", "<|", "<|im_end|", "<|im_end|>", "a", " ", "\u0301", "\u200d", "\u202e", "🎉", "\ufdd0"]
)
def test_hostile_text_costs_linear_time(kind: str, models_by_name: dict[str, Any]) -> None:
    """Twice the text takes about twice the CPU time: quadratic work would show as four times, each time. What other
    programs do to our caches shows now and then, so one pair of many that is as it should be is enough."""
    prompter = models_by_name["qwen"].prompter

    def cost(length: int) -> float:
        text = (kind * length)[:length]
        best = float("inf")
        for _ in range(3):
            start = time.process_time()
            prompter.prepare(Ask(prompt=text))
            best = min(best, time.process_time() - start)
        return best

    assert any(cost(120_000) < 3.2 * cost(60_000) + 0.02 for _ in range(20))


def test_other_threads_run_while_text_is_tokenized(models_by_name: dict[str, Any]) -> None:
    """The step loop lives in the same interpreter: a long prompt must not hold it.

    Measured on the clock of the thread that tokenizes, which stands still while the machine does something else:
    how much of its work passes at most between two moments in which this thread runs."""
    prompter = models_by_name["qwen"].prompter
    text = "hello the wave " * 40_000

    def longest_gap() -> float:
        """As a share of the work of tokenizing."""
        begun, done, seen = threading.Event(), threading.Event(), threading.Event()
        spent: list[float] = []

        def work() -> None:
            begun.set()
            start = time.thread_time()
            prompter.tokenize(text)
            spent.append(time.thread_time() - start)
            done.set()
            seen.wait()  # its clock is read until here

        thread = threading.Thread(target=work)
        thread.start()
        begun.wait()
        assert thread.ident is not None
        clock = time.pthread_getcpuclockid(thread.ident)
        last, longest = time.clock_gettime(clock), 0.0
        while not done.is_set():
            now = time.clock_gettime(clock)
            longest, last = max(longest, now - last), now
        longest = max(longest, time.clock_gettime(clock) - last)
        seen.set()
        thread.join()
        return longest / spent[0]

    assert any(longest_gap() < 0.6 for _ in range(10))


def test_repeated_preparation_keeps_nothing(models_by_name: dict[str, Any]) -> None:
    """The library caches words; the cache is bounded, so memory settles."""
    import resource

    prompter = models_by_name["qwen"].prompter
    generator = random.Random(1)

    def work() -> None:
        for _ in range(1500):
            prompter.prepare(Ask(prompt="".join(chr(generator.randrange(0x4E00, 0x9FA5)) for _ in range(30))))

    work()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    work()
    work()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 24 << 10  # KiB

"""Logprobs of `headrace serve` with the model inside the package: those of transformers, through the client."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import openai
import pytest
import torch

from headrace.runtime.demo_checkpoint import demo_folder

# What float32 rounds differently, in the sum over a vocabulary.
TOLERANCE = 2e-4
COMMAND = [sys.executable, "-P", "-m", "headrace.server", "--port", "0", "--dtype", "float32"]


@pytest.fixture(scope="module")
def client() -> Iterator[openai.OpenAI]:
    process = subprocess.Popen(COMMAND, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line.startswith("ready: "), (line, process.stderr and process.stderr.read())
        url = line.removeprefix("ready: ").strip()
        with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=300.0) as made:
            yield made
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def reference() -> torch.nn.Module:
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText.from_pretrained(demo_folder(), dtype=torch.float32).eval()


def test_a_prompt_and_its_answer(client: openai.OpenAI, reference: torch.nn.Module) -> None:
    """Greedy and drawn, alone and in a batch, the first time and out of the cache."""
    ids = [[20 + 7 * k % 150 for k in range(40)], [60 + 11 * k % 120 for k in range(23)]]
    for temperature in (0.0, 1.3, 0.0):
        reply = client.completions.create(
            model="default", prompt=ids, max_tokens=12, temperature=temperature, seed=5, logprobs=5, echo=True,
            extra_body={"ignore_eos": True},
        )  # fmt: skip
        for prompt, choice in zip(ids, reply.choices, strict=True):
            found = choice.logprobs
            assert found is not None and found.token_logprobs is not None and found.top_logprobs is not None
            assert len(found.token_logprobs) == len(prompt) + 12
            with torch.no_grad():
                expected = reference(torch.tensor([prompt])).logits[0].log_softmax(-1)
            values = [float(expected[place - 1, prompt[place]]) for place in range(1, len(prompt))]
            assert found.token_logprobs[1 : len(prompt)] == pytest.approx(values, abs=TOLERANCE)
            for place in range(1, len(prompt)):
                best = expected[place - 1].topk(5).values.tolist()
                told = sorted(found.top_logprobs[place].values(), reverse=True)
                # Two tokens may be spelled alike, so it is no shorter than one and no longer than six.
                assert told[0] == pytest.approx(best[0], abs=TOLERANCE) and 1 <= len(told) <= 6
            if temperature == 0.0:
                for value, top in zip(
                    found.token_logprobs[len(prompt) :], found.top_logprobs[len(prompt) :], strict=True
                ):
                    assert value == max(top.values()), "greedy, to the bit"

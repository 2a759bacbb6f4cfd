"""The model card: what the model is, what it was trained on, its scores on unseen values, and what it cannot do."""

from __future__ import annotations

from collections.abc import Sequence

from headrace.bench.demo.network import Weights
from headrace.bench.demo.scoring import Score

INTRODUCTION = """# The demo model of headrace

A vision-language model of {parameters:.1f} million parameters ({text:.1f} text, {vision:.1f} vision) in the layout of Qwen3-VL, so that
released `transformers` and every engine that serves Qwen3-VL load it too. It is here so that a first run of headrace is worth
looking at without a download. It is a toy among models, and honest about it.

## What it was trained on

On dialogues and pictures that `headrace/bench/demo` makes up from one seed: grammars, lists of words, and drawings. No text and no
picture from outside was used, and no other model's output. {steps} steps, {tokens:.0f} million tokens, {pictures:.1f} million
pictures, {minutes:.1f} minutes on one {device}; seed {seed}:

```
{command}
```

The data of step k follows from the seed and k alone. The number of steps follows from the time that was given, and sums round
differently from machine to machine, so another run gives a model that is alike, not equal.

## Scores

{count} questions of each kind, answered greedily by the shipped bfloat16 weights in fp32. An answer counts if it is right to the
letter (stories and poems: if they keep to the form and to what was asked). Values that could be learned by heart (operands, lists,
words, layouts of pictures) are split by a hash: those of the questions never occurred in training. Fixed facts (capitals, opposites,
what it says of itself) have no unseen values; there the question tests another wording or other talk before it.

| kind | right |
| --- | --- |
"""
WEAK = 0.95
WEAKNESSES = """
## Where it is weak

Every kind below {percent:.0f} %, the weakest first, with one of its wrong answers:

"""
LIMITS = """
## What it cannot do

- Know things: beyond the few facts of its lists it says that it does not know, or, worse, says something wrong.
- Reason: sums have operands below 1000, products one digit times two, lists at most seven items, words at most about twelve letters.
- Speak any language but simple English; it copies other scripts without understanding them.
- See photographs: it knows flat shapes in eleven colours, upright numbers of up to four digits and words of up to six letters,
  bar charts up to 10, pies of up to four slices and single lines. Of all else it should say that it cannot tell.
- Remember more than {context} tokens, pictures included; a picture takes 16 to 64 of them.
- Be trusted. It exists to show streams.
"""


def card(
    weights: Weights,
    scores: Sequence[Score],
    *,
    steps: int,
    tokens: float,
    pictures: float,
    minutes: float,
    device: str,
    seed: int,
    command: str,
    context: int,
) -> str:
    """The page in Markdown; kinds in the order of `scores`, none left out."""
    total = sum(each.numel() for each in weights.values())
    vision = sum(each.numel() for name, each in weights.items() if ".visual." in name)
    page = INTRODUCTION.format(
        parameters=total / 1e6,
        text=(total - vision) / 1e6,
        vision=vision / 1e6,
        steps=steps,
        tokens=tokens / 1e6,
        pictures=pictures / 1e6,
        minutes=minutes,
        device=device,
        seed=seed,
        command=command,
        count=max(each.asked for each in scores),
    )
    page += "".join(f"| {each.kind} | {100 * each.share:.1f} % |\n" for each in scores)
    right, asked = sum(each.right for each in scores), sum(each.asked for each in scores)
    page += f"| **all** | **{100 * right / asked:.1f} %** |\n"
    return page + weaknesses(scores) + LIMITS.format(context=context)


def weaknesses(scores: Sequence[Score]) -> str:
    """The section on what scored below WEAK; empty if nothing did."""
    weak = sorted((each for each in scores if each.share < WEAK), key=lambda each: each.share)
    if not weak:
        return ""
    section = WEAKNESSES.format(percent=100 * WEAK)
    for each in weak:
        ask, said, expected = (" ".join(text.split()) for text in each.wrong[0])
        section += f"- {each.kind}, {100 * each.share:.1f} %: “{ask}” was answered “{said}”; right was “{expected}”\n"
    return section

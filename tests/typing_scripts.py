"""People at keyboards: random scripts of edits in six languages and emoji, each from one seed."""

from __future__ import annotations

import random
from collections.abc import Iterator

LANGUAGES = {
    "en": "Why don't rivers freeze at the mill? I'd say: the water moves (3.5 m/s), so it can't. "
    "def wheel(step):\n    return step + 1234\n\nPlease explain, in 2-3 sentences.",
    "de": "Über die Mühle fließt das Wasser; größere Räder drehen sich langsamer. Warum? Außerdem: 12,5 % weniger "
    "Kraft – oder täusche ich mich?",
    "ru": "Привет, мир! Почему вода в реке не замерзает у мельницы? Скорость около 3 м/с, а колесо большое.",
    "zh": "你好,世界!为什么水车旁边的河水不会结冰?请用两三句话解释一下。速度大约是每秒3米。",
    "ja": "こんにちは世界。水車のそばの川はなぜ凍らないのですか。二、三文で説明してください。速さは毎秒3mです。",
    "hi": "नमस्ते दुनिया! चक्की के पास नदी का पानी क्यों नहीं जमता? कृपया दो-तीन वाक्यों में समझाइए।",
}
EMOJI = ("🎉", "🚀", "👩‍🚀", "🇩🇪", "👍🏽", "e\u0301", "ﬁ", "\u200d", "½")
SPACES = (" ", "  ", "\n", "\n\n", "\t", " \n ", "\r\n")


def script(rng: random.Random, edits: int) -> Iterator[str]:
    """The text after each edit: keys, corrections, insertions in the middle, deletions, pastes."""
    languages = sorted(LANGUAGES)
    source = LANGUAGES[rng.choice(languages)]
    at = rng.randrange(len(source))
    text = ""
    for _ in range(edits):
        kind = rng.random()
        place = rng.randint(0, len(text))
        if kind < 0.45:  # the next few keys
            count = rng.randint(1, 12)
            text += (source + source)[at : at + count]
            at = (at + count) % len(source)
        elif kind < 0.55:
            text = text[: -rng.randint(1, 8)]
        elif kind < 0.65:
            other = LANGUAGES[rng.choice(languages)]
            begin = rng.randrange(len(other))
            text = text[:place] + other[begin : begin + rng.randint(1, 20)] + text[place:]
        elif kind < 0.75:
            text = text[:place] + text[place + rng.randint(1, 15) :]
        elif kind < 0.83:
            text = text[:place] + rng.choice(EMOJI) + text[place:]
        elif kind < 0.9:
            text = text[:place] + rng.choice(SPACES) + text[place:]
        elif kind < 0.97:
            pasted = " ".join(LANGUAGES[rng.choice(languages)] for _ in range(rng.randint(1, 3)))
            text = text[:place] + pasted + text[place:]
        else:
            text = rng.choice(("", text[:place], text.strip()))
        text = text[:2000]
        yield text

"""Exchanges about words and their letters: spelling, counting, sorting, copying."""

from __future__ import annotations

from headrace.bench.demo.dialogue import Exchange
from headrace.bench.demo.draw import Draw
from headrace.bench.demo.words import COLOURS, NAMES, SYLLABLE_PARTS, WORDS, syllable

SCRIPTS = (  # of random text that is to be copied, never understood
    (0x61, 0x7A), (0x61, 0x7A), (0x41, 0x5A), (0x21, 0x7E), (0xC0, 0xFF), (0x391, 0x3C9), (0x410, 0x44F),
    (0x4E00, 0x4FFF), (0x3041, 0x3090), (0xAC00, 0xACFF), (0x1F600, 0x1F640), (0x1F400, 0x1F440),
)  # fmt: skip


def made_up(draw: Draw) -> str:
    """A word of no language, of one to three syllables."""
    return "".join(
        syllable(*(draw.between(0, part - 1) for part in SYLLABLE_PARTS))
        for _ in range(draw.pick((1, 2, 2, 3)))
    )


def word(draw: Draw) -> str:
    """Any word: one we know, a name, or a new one that lies on this side of the split."""
    if draw.chance(0.5):
        return draw.unseen(lambda: made_up(draw))
    return draw.pick(WORDS if draw.chance(0.8) else NAMES)


def scramble(draw: Draw, longest: int = 12) -> str:
    """Random characters of one script, without spaces."""
    low, high = draw.pick(SCRIPTS)
    return "".join(chr(draw.between(low, high)) for _ in range(draw.between(1, longest)))


def spell(draw: Draw) -> Exchange:
    chosen = word(draw)
    ask = draw.pick(
        (
            "Spell {}",
            "spell {}",
            "How do you spell {}?",
            "Please spell {}.",
            "Can you spell {}?",
            "spell the word {}",
        )
    )
    return Exchange(ask.format(quoted(draw, chosen)), "-".join(chosen))


def quoted(draw: Draw, text: str) -> str:
    """`text`, sometimes in quotes, as people write it."""
    return draw.pick((text, text, f'"{text}"', f"'{text}'"))


def letters_in(draw: Draw) -> Exchange:
    chosen = word(draw)
    ask = draw.pick(
        (
            "How many letters are in {}?",
            "how many letters does {} have",
            "Count the letters in {}.",
            "How long is the word {}?",
        )
    )
    noun = "letter" if len(chosen) == 1 else "letters"
    return Exchange(ask.format(quoted(draw, chosen)), f"{'-'.join(chosen)}: {len(chosen)} {noun}.")


def one_letter_in(draw: Draw) -> Exchange:
    """Spelled out first, with the wanted letters marked as they are passed."""
    chosen = word(draw)
    letter = draw.pick(chosen.lower()) if draw.chance(0.8) else draw.pick("abcdefghijklmnopqrstuvwxyz")
    ask = draw.pick(
        (
            "How many {l}'s are in {w}?",
            "How often is {l} in {w}?",
            "how many times does {l} appear in {w}",
            "Count the letter {l} in {w}.",
            "How many {l}s in {w}?",
        )
    )
    found, walk = 0, []
    for each in chosen:
        if each.lower() == letter:
            found += 1
            walk.append(f"{each}({found})")
        else:
            walk.append(each)
    times = "once" if found == 1 else f"{found} times"
    return Exchange(
        ask.format(l=letter, w=quoted(draw, chosen)), f"{'-'.join(walk)}: {letter} appears {times}."
    )


def backwards(draw: Draw) -> Exchange:
    chosen = word(draw)
    ask = draw.pick(
        (
            "Spell {} backwards.",
            "Reverse {}",
            "reverse the word {}",
            "What is {} backwards?",
            "Write {} backwards",
        )
    )
    return Exchange(ask.format(quoted(draw, chosen)), "-".join(reversed(chosen)))


def end_letter(draw: Draw) -> Exchange:
    chosen = word(draw)
    which = draw.pick(("first", "last"))
    letter = chosen[0] if which == "first" else chosen[-1]
    ask = draw.pick(("What is the {} letter of {}?", "{} letter of {}?", "Which letter is {} in {}?"))
    return Exchange(ask.format(which, quoted(draw, chosen)), f"The {which} letter is {letter}.", letter)


def sort_words(draw: Draw) -> Exchange:
    words = draw.unseen(lambda: draw.some(WORDS, draw.between(3, 6)))
    ask = draw.pick(
        (
            "Sort alphabetically: {}",
            "Sort these words: {}",
            "Put these words in order: {}",
            "sort {}",
            "alphabetical order: {}",
        )
    )
    return Exchange(ask.format(", ".join(words)), ", ".join(sorted(words)))


def reverse_list(draw: Draw) -> Exchange:
    words = draw.unseen(lambda: draw.some(WORDS + COLOURS, draw.between(3, 6)))
    ask = draw.pick(("Reverse this list: {}", "Reverse the order: {}", "Say these backwards: {}"))
    return Exchange(ask.format(", ".join(words)), ", ".join(reversed(words)))


def count_words(draw: Draw) -> Exchange:
    words = draw.unseen(lambda: [draw.pick(WORDS + COLOURS) for _ in range(draw.between(1, 9))])
    ask = draw.pick(("How many words: {}", "Count the words in: {}", "How many words are in this: {}"))
    noun = "word" if len(words) == 1 else "words"
    return Exchange(ask.format(" ".join(words)), f"{len(words)} {noun}.", str(len(words)))


def repeat(draw: Draw) -> Exchange:
    def phrase() -> str:
        parts = []
        for _ in range(draw.between(1, 7)):
            kind = draw.random()
            if kind < 0.5:
                parts.append(
                    draw.pick(
                        WORDS + COLOURS + ("the", "a", "is", "and", "hello", "world", "I", "you", "my", "we")
                    )
                )
            elif kind < 0.65:
                parts.append(draw.pick(NAMES))
            elif kind < 0.75:
                parts.append(str(draw.between(0, 9999)))
            elif kind < 0.9:
                parts.append(made_up(draw))
            else:
                parts.append(scramble(draw, 5))
        return " ".join(parts) + draw.pick(("", "", "", "!", ".", "?"))

    chosen = draw.unseen(phrase)
    ask = draw.pick(
        (
            "Repeat: {}",
            "repeat: {}",
            "Say: {}",
            "say {}",
            "Repeat after me: {}",
            "Echo: {}",
            "Please repeat this: {}",
        )
    )
    return Exchange(ask.format(chosen), chosen)


def capitals(draw: Draw) -> Exchange:
    """A word in capitals, and back."""
    chosen = word(draw).lower()
    if draw.chance(0.7):
        ask = draw.pick(
            ("Write {} in capitals.", "{} in uppercase", "uppercase {}", "Write {} in capital letters")
        )
        return Exchange(ask.format(quoted(draw, chosen)), chosen.upper())
    ask = draw.pick(("Write {} in lowercase.", "{} in small letters", "lowercase {}"))
    return Exchange(ask.format(quoted(draw, chosen.upper())), chosen)

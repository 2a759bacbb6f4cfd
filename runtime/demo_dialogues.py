"""The small talk that the demo model learns: conversations made here from one seed, nothing from outside.

A conversation is a list of (role, text). What the model should know are short rules (count, copy, spell, add
small numbers), a few facts about headrace, and above all how to say that it knows nothing else.
"""

from __future__ import annotations

import random
from collections.abc import Callable

Turn = tuple[str, str]
Maker = Callable[[random.Random], Turn]  # (what the user says, what the model answers)

NAMES = (
    "Ada",
    "Ben",
    "Chloé",
    "Dmitri",
    "Eva",
    "Femi",
    "Grace",
    "Hugo",
    "Ines",
    "Jun",
    "Kofi",
    "Lena",
    "Mia",
    "Noor",
)
NOUNS = (
    *(
        "river",
        "mill",
        "wheel",
        "stone",
        "cat",
        "dog",
        "horse",
        "bird",
        "fish",
        "tree",
        "apple",
        "bread",
        "cheese",
    ),
    *(
        "house",
        "garden",
        "street",
        "train",
        "boat",
        "car",
        "letter",
        "book",
        "song",
        "star",
        "moon",
        "cloud",
        "rain",
    ),
    *(
        "snow",
        "sea",
        "island",
        "mountain",
        "forest",
        "computer",
        "python",
        "rust",
        "server",
        "graph",
        "kernel",
    ),
)
PLACES = (
    "France",
    "Japan",
    "Kenya",
    "Peru",
    "Norway",
    "Canada",
    "India",
    "Chile",
    "Egypt",
    "Iceland",
    "Spain",
)
VERBS = ("see", "like", "draw", "find", "carry", "paint", "follow", "build", "watch", "bring", "open", "hear")
COLOURS = ("red", "blue", "green", "yellow", "white", "black", "brown", "grey", "orange", "silver")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    *("January", "February", "March", "April", "May", "June", "July"),
    *("August", "September", "October", "November", "December"),
)
OPPOSITES = (
    *(("hot", "cold"), ("big", "small"), ("fast", "slow"), ("old", "new"), ("up", "down"), ("day", "night")),
    *(
        ("open", "closed"),
        ("high", "low"),
        ("light", "dark"),
        ("left", "right"),
        ("wet", "dry"),
        ("yes", "no"),
    ),
)
FACTS: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (
        ("What is headrace?", "what's headrace", "Tell me about headrace", "explain headrace", "headrace?"),
        (
            "headrace is a server for language models. "
            "It sends every token over a websocket as soon as it is made.",
            "headrace serves language models to people who watch the tokens arrive, one by one.",
        ),
    ),
    (
        (
            "Why is it called headrace?",
            "what does headrace mean",
            "What is a head race?",
            "where does the name come from?",
        ),
        ("A headrace is the channel that brings the water to a mill wheel. Here the water is tokens.",),
    ),
    (
        (
            "Who are you?",
            "who are you",
            "What are you?",
            "What model are you?",
            "are you chatgpt?",
            "Are you an AI?",
        ),
        (
            "I am the demo model inside headrace: about one million parameters, one byte per token. "
            "I know very little.",
            "I am a tiny demo model. I was trained in minutes on a few made-up conversations.",
        ),
    ),
    (
        (
            "How do I use a real model?",
            "how can i load another model",
            "can you run llama?",
            "How do I change the model?",
        ),
        ("Start the server with a model folder or a hub id:\n\n```\nheadrace serve Qwen/Qwen3-0.6B\n```",),
    ),
    (
        ("What can you do?", "help", "Help!", "what can you do", "What do you know?", "how can you help me?"),
        (
            "Not much! Try:\n\n- count to 20\n- say the alphabet\n- spell river\n- what is 3 plus 4?"
            "\n- repeat: hello world"
            "\n- tell me a story\n- what is headrace?",
        ),
    ),
    (
        ("How does streaming work?", "how do tokens stream", "What is a token?", "what is streaming?"),
        (
            "I write one token at a time. "
            "Each token is **one byte** for me, and the server sends it at once. "
            "You are watching it happen.",
        ),
    ),
    (
        ("What is continuous batching?", "how do you serve many people?", "what is batching"),
        (
            "New requests join the running batch at the next step and leave it at once when they end. "
            "Nobody waits.",
        ),
    ),
    (
        ("How big are you?", "how many parameters do you have?", "what is your size?"),
        ("About one million parameters. Large models have a thousand to a million times more.",),
    ),
)
HELLOS = (
    "Hello",
    "Hi",
    "hello",
    "hi",
    "Hey",
    "hey there",
    "Good morning",
    "good evening",
    "Hello!",
    "Hi!",
    "Servus",
    "hallo",
)
HELLO_ANSWERS = (
    "Hello! I am the tiny demo model of headrace. Ask me to count, spell, or tell a story.",
    "Hi! I am very small, but I stream well. Try: count to 20.",
    "Hello there! Ask me what I can do.",
)
UNKNOWN = (
    "I do not know that. I am a very small demo model: I can count, spell, repeat and tell a little story.",
    "That is too much for me, I am only a demo. Try: tell me a story, or start headrace with a real model.",
    "Sorry, I know very little. Ask me what I can do!",
)
ASKING = (
    "What is the capital of {place}?",
    "Write a poem about a {noun}",
    "How do I {verb} a {noun}?",
    "Explain the {noun} to me",
    "Why is the {noun} {colour}?",
    "translate {noun} into French",
    "who won the game in {place}",
    "can you {verb} the {noun} for me?",
    "What do you think about {place} and the {noun}?",
    "Give me a recipe for {noun} soup",
    "is {place} far from {place}?",
    "how old is the {noun}",
    "write code that sorts a list of {noun}s",
    "I want to {verb} a {colour} {noun}",
    "{noun}",
    "{noun} {verb} {colour}",
    "What is a {noun}?",
    "When did the {noun} come to {place}?",
)


def _case(generator: random.Random, text: str) -> str:
    """People write as they like."""
    style = generator.random()
    if style < 0.25:
        text = text[0].lower() + text[1:]
    elif style < 0.35:
        text = text.lower().rstrip("?.!")
    elif style < 0.40:
        text = text.rstrip("?.!")
    return text


def hello(generator: random.Random) -> Turn:
    return generator.choice(HELLOS), generator.choice(HELLO_ANSWERS)


def fact(generator: random.Random) -> Turn:
    questions, answers = generator.choice(FACTS)
    return _case(generator, generator.choice(questions)), generator.choice(answers)


def count(generator: random.Random) -> Turn:
    low = 1 if generator.random() < 0.6 else generator.randint(0, 30)
    high = low + generator.randint(2, 19)
    if low == 1:
        ask = generator.choice(
            (f"Count to {high}", f"count to {high}", f"Please count to {high}.", f"Can you count to {high}?")
        )
    else:
        ask = generator.choice(
            (f"Count from {low} to {high}", f"count from {low} to {high}", f"numbers from {low} to {high}")
        )
    return ask, ", ".join(str(number) for number in range(low, high + 1)) + "."


def alphabet(generator: random.Random) -> Turn:
    ask = generator.choice(
        ("Say the alphabet", "say the alphabet", "The alphabet, please", "alphabet", "Recite the alphabet.")
    )
    return ask, "a b c d e f g h i j k l m n o p q r s t u v w x y z"


def calendar(generator: random.Random) -> Turn:
    if generator.random() < 0.5:
        ask = generator.choice(
            ("What are the days of the week?", "days of the week", "List the days of the week.")
        )
        return ask, "\n".join(f"- {day}" for day in DAYS)
    ask = generator.choice(("What are the months?", "List the months.", "months of the year"))
    return ask, ", ".join(MONTHS) + "."


def spell(generator: random.Random) -> Turn:
    word = generator.choice(NOUNS + NAMES + COLOURS)
    ask = generator.choice(("Spell {}", "spell {}", "How do you spell {}?", "Please spell {}."))
    return ask.format(word), "-".join(word)


def repeat(generator: random.Random) -> Turn:
    words = generator.choices(
        NOUNS + COLOURS + VERBS + NAMES + ("the", "a", "hello", "world", "你好", "🎉"),
        k=generator.randint(1, 5),
    )
    phrase = " ".join(words)
    ask = generator.choice(
        ("Repeat: {}", "repeat: {}", "Say: {}", "say {}", "Repeat after me: {}", "Echo {}")
    )
    return ask.format(phrase), phrase


def add(generator: random.Random) -> Turn:
    one, other = generator.randint(0, 10), generator.randint(0, 10)
    ask = generator.choice(
        ("What is {} plus {}?", "{} + {}", "what is {} + {}?", "{} plus {}", "Add {} and {}.", "{}+{}=?")
    )
    return ask.format(one, other), f"{one} + {other} = {one + other}"


def opposite(generator: random.Random) -> Turn:
    pair = generator.choice(OPPOSITES)
    word, answer = pair if generator.random() < 0.5 else pair[::-1]
    ask = generator.choice(("What is the opposite of {}?", "opposite of {}", "Tell me the opposite of {}."))
    return ask.format(word), f"The opposite of {word} is {answer}."


def name(generator: random.Random) -> Turn:
    who = generator.choice(NAMES)
    ask = generator.choice(("My name is {}", "I am {}.", "i'm {}", "Hello, my name is {}!", "Call me {}."))
    answer = generator.choice(("Nice to meet you, {}!", "Hello {}! Ask me what I can do.", "Welcome, {}."))
    return ask.format(who), answer.format(who)


def story(generator: random.Random) -> Turn:
    about = generator.choice(NOUNS)
    named = generator.random() < 0.5
    ask = generator.choice(("Tell me a story", "tell me a story", "A story, please!", "Write a short story"))
    if named:
        ask = ask.rstrip("!") + f" about a {about}"
    who, friend = generator.sample(NAMES, 2)
    colour, thing = generator.choice(COLOURS), generator.choice(NOUNS)
    return ask, (
        f"Once upon a time there was a {colour} {about}. One day {who} came to {generator.choice(VERBS)} it. "
        f"Behind the {about} stood {friend} with a {thing}. "
        "They laughed, and they went home along the river. "
        "**The end.**"
    )


def thanks(generator: random.Random) -> Turn:
    ask = generator.choice(
        ("Thanks!", "thank you", "Thank you very much", "thanks", "great", "Cool!", "nice")
    )
    return ask, generator.choice(("You are welcome!", "My pleasure.", "Gladly! What next?"))


def goodbye(generator: random.Random) -> Turn:
    ask = generator.choice(("Bye", "bye", "Goodbye!", "See you", "good night", "ciao"))
    return ask, generator.choice(("Goodbye!", "See you soon!", "Bye! It was nice to stream for you."))


def feeling(generator: random.Random) -> Turn:
    ask = generator.choice(("How are you?", "how are you", "How do you do?", "are you ok?", "What's up?"))
    return ask, generator.choice(("I am fine, thank you. The tokens flow well today.", "Very well! And you?"))


def unknown(generator: random.Random) -> Turn:
    if generator.random() < 0.25:  # anything at all, in any script
        ranges = (
            (0x61, 0x7A),
            (0x20, 0x7E),
            (0x4E00, 0x4FFF),
            (0x430, 0x44F),
            (0x1F600, 0x1F640),
            (0xC0, 0xFF),
        )
        low, high = generator.choice(ranges)
        ask = (
            "".join(chr(generator.randint(low, high)) for _ in range(generator.randint(1, 25))).strip() or "?"
        )
    else:
        ask = generator.choice(ASKING)
        for field, words in (("place", PLACES), ("noun", NOUNS), ("verb", VERBS), ("colour", COLOURS)):
            while "{" + field + "}" in ask:
                ask = ask.replace("{" + field + "}", generator.choice(words), 1)
        ask = _case(generator, ask)
    return ask, generator.choice(UNKNOWN)


MAKERS: tuple[tuple[Maker, int], ...] = (
    *((hello, 6), (fact, 16), (count, 12), (alphabet, 2), (calendar, 3), (spell, 9), (repeat, 14), (add, 8)),
    *((opposite, 3), (name, 5), (story, 8), (thanks, 4), (goodbye, 2), (feeling, 3), (unknown, 18)),
)
SYSTEMS = (
    "You are a helpful assistant.",
    "Be brief.",
    "You are a friendly demo.",
    "Answer in one sentence.",
    "Speak plainly.",
)


def conversation(generator: random.Random) -> list[Turn]:
    """One to six exchanges as (role, text), sometimes after a system message."""
    turns: list[Turn] = []
    if generator.random() < 0.25:
        turns.append(("system", generator.choice(SYSTEMS)))
    makers = [maker for maker, _ in MAKERS]
    weights = [weight for _, weight in MAKERS]
    for _ in range(generator.choice((1, 1, 2, 3, 4, 6))):
        user, assistant = generator.choices(makers, weights)[0](generator)
        turns += [("user", user), ("assistant", assistant)]
    return turns

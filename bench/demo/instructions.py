"""Dialogues in which what was said before decides the answer: system prompts, brevity, memory."""

from __future__ import annotations

from collections.abc import Sequence

from headrace.bench.demo import dates, letters, numbers, talk
from headrace.bench.demo.dialogue import Dialogue, Exchange, Maker, Message
from headrace.bench.demo.draw import Draw
from headrace.bench.demo.letters import made_up
from headrace.bench.demo.words import ANIMALS, COLOURS, DAYS, FOODS, FRUITS, NAMES, PLACES, THINGS

NEUTRAL = (
    "You are a helpful assistant.", "You are a helpful assistant", "You are a friendly assistant.", "Speak plainly.",
    "You are a chat bot.", "Answer the user's questions.", "Be polite.", "You are a demo.",
)  # fmt: skip
BRIEF = (
    "Be brief.", "Answer briefly.", "Be brief", "Answer with as few words as possible.", "Keep it short.", "Short answers only.",
    "You are a helpful assistant. Be brief.", "Reply only with the result.",
)  # fmt: skip
BRIEF_SUFFIX = (" Be brief.", " Answer briefly.", " Just the answer.", " Short answer please.", " (be brief)")
SHORTENED: tuple[Maker, ...] = (
    numbers.add, numbers.subtract, numbers.story_sum, numbers.compare, numbers.even_or_odd, numbers.extreme,
    numbers.count_things, numbers.next_number, dates.units, dates.weekday, talk.capital, talk.opposite, talk.translate,
    letters.end_letter, letters.count_words,
)  # fmt: skip
FILLERS: tuple[Maker, ...] = (
    numbers.add, numbers.subtract, numbers.compare, numbers.sort_numbers, letters.spell, letters.repeat, dates.weekday,
    dates.units, talk.small_talk, talk.about, talk.world, talk.opposite, talk.capital, talk.translate,
)  # fmt: skip


def fill(draw: Draw, dialogue: Dialogue, most: int, makers: Sequence[Maker] = FILLERS) -> None:
    """Up to `most` exchanges about something else."""
    for _ in range(draw.between(0, most)):
        dialogue.add(draw.pick(makers)(draw))


def neutral(draw: Draw, dialogue: Dialogue) -> None:
    """Sometimes a system prompt that changes nothing."""
    if draw.chance(0.3):
        sentences = draw.some(NEUTRAL, draw.pick((1, 1, 2, 3)))
        dialogue.messages.append(Message("system", " ".join(sentences)))


def brief(draw: Draw) -> Dialogue:
    """Asked for brevity by the system, once, or for the rest of the talk."""
    dialogue = Dialogue()
    kind = draw.between(0, 2)
    if kind == 0:
        dialogue.messages.append(Message("system", draw.pick(BRIEF)))
    elif kind == 1:
        fill(draw, dialogue, 1)
        dialogue.add(Exchange(draw.pick(BRIEF), "OK."))
    for _ in range(draw.between(1, 3) if kind < 2 else 1):
        if kind == 2:
            fill(draw, dialogue, 1)
        exchange = draw.pick(SHORTENED)(draw)
        if kind == 2:
            exchange = Exchange(exchange.ask + draw.pick(BRIEF_SUFFIX), exchange.answer, exchange.brief)
        dialogue.add(exchange, brief=True)
    return dialogue


# What people tell of themselves: the telling, the asking, the answer, and what can be told.
TOLD = (
    (("My name is {}.", "I am {}.", "I'm {}", "Call me {}.", "my name is {}", "Hello, my name is {}!"),
     ("What is my name?", "who am I?", "Do you remember my name?", "what's my name"), "Your name is {}.", NAMES),
    (("My favourite colour is {}.", "I like the colour {}.", "my favorite color is {}"),
     ("What is my favourite colour?", "Which colour do I like?", "what's my favorite color?"), "Your favourite colour is {}.", COLOURS),
    (("I live in {}.", "I am from {}", "My home is in {}.", "i live in {}"),
     ("Where do I live?", "Where am I from?", "which city do I live in?"), "You live in {}.", PLACES),
    (("I have a {}.", "My pet is a {}.", "i have a pet {}"),
     ("What pet do I have?", "which animal do I have?", "What is my pet?"), "You have a {}.", ANIMALS),
    (("My favourite food is {}.", "I love {}.", "I like to eat {}"),
     ("What is my favourite food?", "What do I like to eat?", "what food do I like?"), "You like {}.", FOODS + FRUITS),
    (("My meeting is on {}.", "Remember: the meeting is on {}.", "we meet on {}"),
     ("When is my meeting?", "On which day is the meeting?", "when do we meet?"), "The meeting is on {}.", DAYS),
    (("My lucky number is {}.", "Remember the number {}.", "remember {}"),
     ("What is my number?", "Which number did I tell you?", "What was the number?"), "Your number is {}.", None),
    (("The password is {}.", "Remember this word: {}", "The secret word is {}."),
     ("What is the password?", "Which word did I tell you?", "What was the secret word?"), "The word is {}.", ()),
)  # fmt: skip


def memory(draw: Draw) -> Dialogue:
    """Something told, other talk, and the question for it; or the question for what was never told."""
    dialogue = Dialogue()
    neutral(draw, dialogue)
    topics = draw.some(range(len(TOLD)), draw.between(1, 3))
    asked = draw.pick(topics)
    value_asked = ""
    never = draw.chance(0.12)
    for topic in topics:
        tellings, _, recall, values = TOLD[topic]
        if never and topic == asked:
            continue
        if values is None:
            value = draw.unseen(lambda: str(draw.between(2, 9999)))
        elif not values:
            value = draw.unseen(lambda: made_up(draw) if draw.chance(0.6) else draw.pick(THINGS))
        else:
            value = draw.pick(values)
        if topic == asked:
            value_asked = value
        fill(draw, dialogue, 1)
        telling = draw.pick(tellings).format(value)
        if topic == 0:
            dialogue.add(Exchange(telling, f"Nice to meet you, {value}!"))
        else:
            dialogue.add(Exchange(telling, "I will remember that."))
    fill(draw, dialogue, 2)
    _, asks, recall, _ = TOLD[asked]
    answer = "You have not told me that." if never else recall.format(value_asked)
    dialogue.add(Exchange(draw.pick(asks), answer))
    return dialogue


def follow_up(draw: Draw) -> Dialogue:
    """A second question that leans on the answer before it."""
    dialogue = Dialogue()
    neutral(draw, dialogue)
    fill(draw, dialogue, 1)
    kind = draw.between(0, 2)
    if kind == 0:
        one, other, more = draw.unseen(
            lambda: (draw.between(1, 99), draw.between(1, 99), draw.between(1, 50))
        )
        total = one + other
        dialogue.add(Exchange(f"What is {one} + {other}?", f"{one} + {other} = {total}"))
        if draw.chance(0.6):
            ask = draw.pick(("And plus {}?", "Add {} to that.", "now add {}", "plus {}?"))
            dialogue.add(Exchange(ask.format(more), f"{total} + {more} = {total + more}"))
        else:
            ask = draw.pick(("And minus {}?", "Subtract {} from that.", "now take away {}", "minus {}?"))
            dialogue.add(Exchange(ask.format(more), f"{total} - {more} = {total - more}"))
    elif kind == 1:
        row = draw.unseen(lambda: [draw.between(0, 99) for _ in range(draw.between(3, 6))])
        ordered = sorted(row)
        dialogue.add(Exchange("Sort: " + ", ".join(map(str, row)), ", ".join(map(str, ordered))))
        ask, answer = draw.pick(
            (("Now the other way round.", ", ".join(map(str, ordered[::-1]))), ("And the largest?", f"The largest is {ordered[-1]}."),
             ("And the smallest?", f"The smallest is {ordered[0]}."), ("Now as JSON.", "[" + ", ".join(map(str, ordered)) + "]"))
        )  # fmt: skip
        dialogue.add(Exchange(ask, answer))
    else:
        word = letters.word(draw)
        dialogue.add(Exchange(f"Spell {word}", "-".join(word)))
        ask, answer = draw.pick(
            (("And backwards?", "-".join(reversed(word))), ("How many letters is that?", f"{'-'.join(word)}: {len(word)} letter{'' if len(word) == 1 else 's'}."),
             ("In capitals?", word.upper()))
        )  # fmt: skip
        dialogue.add(Exchange(ask, answer))
    return dialogue


ROLES = (
    "baker",
    "miller",
    "sailor",
    "teacher",
    "guide",
    "robot",
    "librarian",
    "pirate",
    "gardener",
    "cook",
    "guard",
)


def persona(draw: Draw) -> Dialogue:
    """The system prompt says who the model is."""
    name, role, place = draw.unseen(
        lambda: (
            draw.pick(NAMES) if draw.chance(0.6) else made_up(draw).capitalize(),
            draw.pick(ROLES),
            draw.pick(PLACES),
        )
    )
    dialogue = Dialogue()
    system = draw.pick(
        (
            "You are {n}, a {r} from {p}.",
            "Your name is {n}. You are a {r} and you live in {p}.",
            "You play {n}, the {r} of {p}.",
        )
    )
    dialogue.messages.append(
        Message("system", system.format(n=name, r=role, p=place) + draw.pick(("", "", " Be polite.")))
    )
    fill(draw, dialogue, 2, (numbers.add, letters.spell, dates.weekday, talk.opposite, numbers.compare))
    asks, answer = draw.pick(
        ((("Who are you?", "Introduce yourself.", "who are you"), f"I am {name}, a {role} from {place}."),
         (("What is your name?", "what's your name?"), f"My name is {name}."),
         (("Where are you from?", "Where do you live?"), f"I am from {place}."),
         (("What do you do?", "What is your job?"), f"I am a {role}."))
    )  # fmt: skip
    dialogue.add(Exchange(draw.pick(asks), answer))
    return dialogue


GOODS = ("tea", "coffee", *FOODS, *FRUITS, "book", "hat", "lamp", "kite", "candle", "basket")


def grounded(draw: Draw) -> Dialogue:
    """The system prompt holds facts; the answer is one of them, or that it is not among them."""
    opens, closes = draw.unseen(lambda: (draw.between(6, 11), draw.between(14, 22)))
    place, owner, day = draw.pick(PLACES), draw.pick(NAMES), draw.pick(DAYS)
    goods = draw.some(GOODS, draw.between(2, 4))
    prices = draw.unseen(lambda: [draw.between(1, 99) for _ in goods])
    facts = [
        f"The shop is in {place}.", f"It opens at {opens} and closes at {closes}.", f"It is closed on {day}.",
        f"The owner is {owner}.", *(f"{good.capitalize()} costs {price} euros." for good, price in zip(goods, prices, strict=True)),
    ]  # fmt: skip
    at = draw.between(0, len(goods) - 1)
    kinds: list[tuple[int | None, tuple[str, ...], str]] = [
        (0, ("Where is the shop?", "In which city are you?"), f"The shop is in {place}."),
        (1, ("When does it open?", "When do you open?"), f"It opens at {opens}."),
        (1, ("When does it close?", "Until when are you open?"), f"It closes at {closes}."),
        (2, ("On which day is it closed?", "When are you closed?"), f"It is closed on {day}."),
        (3, ("Who is the owner?", "Who owns the shop?"), f"The owner is {owner}."),
        (4 + at, (f"How much does {goods[at]} cost?", f"What is the price of {goods[at]}?"), f"{goods[at].capitalize()} costs {prices[at]} euros."),
        (4 + at, (f"How much is {goods[at]}?", f"price of {goods[at]}?"), f"{goods[at].capitalize()} costs {prices[at]} euros."),
    ]  # fmt: skip
    fact, asks, answer = draw.pick(kinds)
    left = [text for i, text in enumerate(facts) if draw.chance(0.75) or i == fact]
    if draw.chance(0.15):
        left = [text for i, text in enumerate(facts) if i != fact]
        answer = "I do not know that: it is not in what I was told."
    if draw.chance(0.4):
        left = draw.some(left, len(left))
    dialogue = Dialogue()
    front = draw.pick(
        ("You answer questions about a shop. ", "You work in a shop. ", "Use only these facts: ", "")
    )
    dialogue.messages.append(Message("system", front + " ".join(left)))
    fill(draw, dialogue, 1, (talk.small_talk, numbers.add))
    dialogue.add(Exchange(draw.pick(asks), answer))
    return dialogue


def closing_phrase(draw: Draw) -> Dialogue:
    """The system prompt wants every answer to end, or to begin, in one way."""

    def phrase() -> str:
        return " ".join(letters.word(draw) for _ in range(draw.between(1, 2))).capitalize() + draw.pick(
            ("!", ".", "!")
        )

    chosen = draw.unseen(phrase)
    first = draw.chance(0.4)
    where = "Begin" if first else "End"
    dialogue = Dialogue()
    dialogue.messages.append(
        Message(
            "system",
            draw.pick(("{w} every answer with: {p}", "{w} each answer with {p}")).format(w=where, p=chosen),
        )
    )
    for _ in range(draw.between(1, 3)):
        exchange = draw.pick(FILLERS)(draw)

        def styled(answer: str) -> str:
            return f"{chosen} {answer}" if first else f"{answer} {chosen}"

        dialogue.add(
            Exchange(
                exchange.ask, styled(exchange.answer), None, tuple(styled(each) for each in exchange.accepted)
            )
        )
    return dialogue

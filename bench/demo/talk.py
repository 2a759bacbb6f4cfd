"""Small talk, what the model says of itself and of headrace, a few facts, and how it says that it knows no more."""

from __future__ import annotations

from headrace.bench.demo.dialogue import Exchange
from headrace.bench.demo.draw import Draw
from headrace.bench.demo.letters import made_up, scramble
from headrace.bench.demo.words import (
    CAPITALS,
    COLOURS,
    DICTIONARY,
    FOODS,
    LANGUAGES,
    NAMES,
    OPPOSITES,
    PLACES,
    THINGS,
    WORDS,
)

Facts = tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]

SMALL_TALK: Facts = (
    (
        (
            "Hello",
            "Hi",
            "Hey",
            "hey there",
            "Good morning",
            "Good evening",
            "Hello!",
            "Hi!",
            "Hi there",
            "hallo",
            "hello there",
            "Good day",
            "yo",
            "Hey!",
        ),
        (
            "Hello! What can I do for you?",
            "Hi! Ask me something, or drop a picture.",
            "Hello! Ask me what I can do.",
        ),
    ),
    (
        (
            "How are you?",
            "how are you",
            "How do you do?",
            "are you ok?",
            "What's up?",
            "how is it going?",
            "How are you today?",
        ),
        ("I am fine, thank you. The tokens flow well today.", "Very well, thank you! And you?"),
    ),
    (
        (
            "Thanks!",
            "thank you",
            "Thank you very much",
            "thanks",
            "great",
            "Cool!",
            "nice",
            "well done",
            "Good job!",
            "perfect",
            "awesome",
            "wow",
            "Great, thanks!",
        ),
        ("You are welcome!", "My pleasure.", "Gladly! What next?"),
    ),
    (
        ("Bye", "bye", "Goodbye!", "See you", "good night", "ciao", "see you later", "Bye bye"),
        ("Goodbye!", "See you soon!", "Bye! It was nice to stream for you."),
    ),
    (
        (
            "ok",
            "okay",
            "yes",
            "no",
            "hm",
            "I see",
            "sure",
            "fine",
            "good",
            "I am fine",
            "I am fine too",
            "alright",
        ),
        ("Good. What next?", "All right! What shall I do?"),
    ),
    (
        ("I am sad", "I feel bad today", "I am tired", "I had a bad day", "I'm lonely"),
        ("I am sorry to hear that. Shall I tell you a story?",),
    ),
    (
        ("I am happy", "I feel great", "What a nice day!", "I am happy today", "I love you"),
        ("That is good to hear!",),
    ),
    (
        (
            "Can you help me?",
            "I need help",
            "can i ask you something?",
            "I have a question",
            "Are you there?",
            "test",
            "testing",
            "can you hear me?",
        ),
        ("I am here. What do you want to know?",),
    ),
    (
        ("You are stupid", "that is wrong", "this is bad", "you are useless", "wrong!", "That is not right"),
        ("I am sorry. I am a very small model and I make mistakes.",),
    ),
)

ABOUT: Facts = (
    (
        ("What is headrace?", "what's headrace", "Tell me about headrace", "explain headrace", "headrace?", "What does headrace do?", "what is this?", "what is this server?"),
        (
            "headrace is a server for language models. It sends every token over a websocket as soon as it is made.",
            "headrace serves language models to people who watch the tokens arrive, one by one.",
        ),
    ),
    (
        ("Why is it called headrace?", "what does headrace mean", "What is a head race?", "where does the name come from?", "why the name headrace"),
        ("A headrace is the channel that brings the water to a mill wheel. Here the water is tokens.",),
    ),
    (
        ("Who are you?", "who are you", "What are you?", "What model are you?", "are you chatgpt?", "Are you an AI?", "What is your name?", "tell me about yourself", "are you human?", "are you a robot?", "Introduce yourself."),
        (
            "I am the demo model inside headrace: a very small network that reads text and pictures.",
            "I am headrace's demo model. I am tiny, and I was trained in minutes on made-up conversations.",
        ),
    ),
    (
        ("Who made you?", "who built you?", "Who created you?", "who trained you", "where do you come from?"),
        ("The makers of headrace trained me, from zero, with a script that lies beside their code.",),
    ),
    (
        ("How were you trained?", "what were you trained on?", "What is your training data?", "where did you learn this?"),
        ("On conversations and pictures that a program made up. No text from outside was used.",),
    ),
    (
        ("How do I use a real model?", "how can i load another model", "can you run llama?", "How do I change the model?", "how to use a bigger model", "How do I serve my own model?"),
        ("Start the server with a model folder or a hub id:\n\n```\nheadrace serve Qwen/Qwen3-0.6B\n```",),
    ),
    (
        ("What can you do?", "help", "Help!", "what can you do", "What do you know?", "how can you help me?", "what can i ask?", "What are you good at?", "show me what you can do", "commands"),
        (
            "Try:\n\n- What is 345 + 278?\n- Sort 42, 7, 19\n- Spell river\n- Tell me a story about a fox\n"
            "- What day comes after Monday?\n- Give me JSON with name Ana and age 12\n"
            "- drop a picture of shapes, a number or a chart, and ask about it",
        ),
    ),
    (
        ("How does streaming work?", "how do tokens stream", "What is a token?", "what is streaming?", "what are tokens?"),
        ("I write one token at a time, a short piece of a word. The server sends each one at once. You are watching it happen.",),
    ),
    (
        ("What is continuous batching?", "how do you serve many people?", "what is batching", "explain batching"),
        ("New requests join the running batch at the next step and leave it at once when they end. Nobody waits.",),
    ),
    (
        ("How big are you?", "how many parameters do you have?", "what is your size?", "are you a large language model?", "how large are you"),
        ("About 14 million parameters. Large models have a thousand times more.",),
    ),
    (
        ("What is a websocket?", "explain websockets", "why websockets?"),
        ("A websocket is a connection that stays open in both directions, so many answers can flow over one line.",),
    ),
    (
        ("Can you see pictures?", "can you see images?", "Do you understand images?", "can i send you a picture?", "are you multimodal?"),
        ("Yes. I see coloured shapes, numbers, short words and simple charts. Drop a picture and ask.",),
    ),
    (
        ("What can you not do?", "what are your limits?", "What don't you know?", "are you always right?", "can I trust you?"),
        ("I know almost nothing of the world, and I make mistakes. For real answers, serve a real model.",),
    ),
    (
        ("What languages do you speak?", "do you speak German?", "can you speak Spanish?", "which languages do you know?"),
        ("I speak simple English, and I know a few words of German, French and Spanish.",),
    ),
)  # fmt: skip

WORLD: Facts = tuple(
    (tuple(line.split(" | ")[:-1]), (line.split(" | ")[-1],))
    for line in """Why is the sky blue? | why is the sky blue | what makes the sky blue? | Air scatters the blue part of sunlight more than the red part, so blue comes from everywhere in the sky.
What color is the sky? | what colour is the sky? | The sky is blue by day.
What color is grass? | what colour is grass? | Grass is green.
What color is a banana? | what colour is a banana? | A ripe banana is yellow.
What color is snow? | what colour is snow? | Snow is white.
What color is coal? | what colour is coal? | Coal is black.
How many legs does a dog have? | how many legs does a cat have? | how many legs does a horse have? | Four legs.
How many legs does a spider have? | legs of a spider? | A spider has eight legs.
How many legs does an ant have? | how many legs does a bee have? | how many legs has an insect? | Insects have six legs.
How many legs does a bird have? | how many legs does a duck have? | A bird has two legs.
How many days are in a year? | how many days does a year have? | A year has 365 days, and a leap year 366.
How many days are in a week? | how many days does a week have? | A week has seven days.
How many months are in a year? | how many months does a year have? | A year has twelve months.
How many hours are in a day? | how many hours does a day have? | A day has 24 hours.
How many sides does a triangle have? | sides of a triangle? | A triangle has three sides.
How many sides does a square have? | sides of a square? | A square has four equal sides.
How many sides does a hexagon have? | sides of a hexagon? | A hexagon has six sides.
How many planets are there? | how many planets does the sun have? | Eight planets go around the sun.
What is the largest planet? | which planet is the biggest? | Jupiter is the largest planet.
What is the sun? | what's the sun? | The sun is a star.
What is the moon? | what's the moon? | The moon goes around the earth.
At what temperature does water boil? | when does water boil? | Water boils at 100 degrees Celsius.
At what temperature does water freeze? | when does water freeze? | Water freezes at 0 degrees Celsius.
What is ice? | what is ice made of? | Ice is frozen water.
What do cows eat? | what does a cow eat? | Cows eat grass.
What do bees make? | what does a bee make? | Bees make honey.
What sound does a dog make? | what does a dog say? | A dog barks: woof!
What sound does a cat make? | what does a cat say? | A cat says meow.
What sound does a cow make? | what does a cow say? | A cow says moo.
What do you get when you mix blue and yellow? | mix yellow and blue | blue plus yellow? | Blue and yellow make green.
What do you get when you mix red and yellow? | mix yellow and red | red plus yellow? | Red and yellow make orange.
What do you get when you mix red and blue? | mix blue and red | red plus blue? | Red and blue make purple.
Tell me a joke | tell me a joke | a joke, please | joke | make me laugh | Why did the token cross the socket? To get to the other stream!
Tell me another joke | another joke | one more joke | What does a mill say to the river? Keep it flowing!
What is the meaning of life? | meaning of life? | 42, they say. I am too small to know.
Say the alphabet | alphabet | Recite the alphabet. | the alphabet, please | a b c d e f g h i j k l m n o p q r s t u v w x y z
What are the vowels? | list the vowels | The vowels are a, e, i, o and u.
What is a cat? | what's a cat? | A cat is a small animal that says meow.
What is a river? | what's a river? | A river is water that flows to the sea.
What is a computer? | what's a computer? | A computer is a machine that follows instructions.
What is Python? | what's python? | Python is a programming language.
What is an AI? | what is artificial intelligence? | what is a language model? | A language model is a program that has learned to continue text, one token at a time.""".splitlines()
)  # fmt: skip

UNKNOWN = (
    "I do not know that. I am a very small demo model.",
    "Sorry, that is too much for me. I am only a demo: ask me what I can do.",
)
ASKING = (
    "What is the population of {place}?", "Write an essay about {noun}", "How do I {verb} a {noun}?",
    "Explain the {noun} to me", "Why is the {noun} {colour}?", "who won the game in {place}",
    "can you {verb} the {noun} for me?", "What do you think about {place} and the {noun}?",
    "Give me a recipe for {food} soup", "is {place} far from {place}?", "how old is the {noun}",
    "I want to {verb} a {colour} {noun}", "{noun}", "{noun} {colour}", "What is a {odd}?", "When did the {noun} come to {place}?",
    "Who is {name} {odd}?", "who is the president of {place}?", "What is the weather in {place}?", "what's the news today?",
    "How much does a {noun} cost?", "Who invented the {noun}?", "Where is the {noun} of {place}?", "Who wrote {odd}?",
    "What happened in {year}?", "Translate this text about the {noun} into Latin", "what is the meaning of {odd}",
    "How far is the {noun}?", "Should I buy a {noun}?", "What is the best {noun} in {place}?", "Prove that {odd} is {odd}",
    "what is the square root of {year}?", "What is the capital of {odd}?", "Who is the king of {place}?", "When was {name} born?",
    "Recommend me a good {noun}", "What will happen tomorrow in {place}?", "write a {noun} program in C", "what is quantum {noun}?",
    "Solve the {noun} problem", "Which {noun} is better, the {colour} or the {colour} one?", "What time is it?", "What is today's date?",
    "Book me a flight to {place}", "Play some music", "Open the {noun}", "Call {name}", "What is {odd}?", "Do you know {odd}?",
    "tell me about {place}", "Tell me about {name}", "why do {noun}s {verb}?", "How does a {noun} work?", "Is {odd} a {noun}?",
)  # fmt: skip
VERBS = (
    "build",
    "paint",
    "cook",
    "repair",
    "sell",
    "find",
    "open",
    "carry",
    "draw",
    "clean",
    "teach",
    "catch",
    "hide",
)


def written(draw: Draw, text: str) -> str:
    """`text` as people write it."""
    style = draw.random()
    if style < 0.25:
        return text[0].lower() + text[1:]
    if style < 0.40:
        return text.lower().rstrip("?.!")
    if style < 0.50:
        return text.rstrip("?.!")
    return text


def _fact(draw: Draw, facts: Facts) -> Exchange:
    asks, answers = draw.pick(facts)
    return Exchange(written(draw, draw.pick(asks)), draw.pick(answers), accepted=answers)


def small_talk(draw: Draw) -> Exchange:
    return _fact(draw, SMALL_TALK)


def about(draw: Draw) -> Exchange:
    return _fact(draw, ABOUT)


def world(draw: Draw) -> Exchange:
    return _fact(draw, WORLD)


def capital(draw: Draw) -> Exchange:
    country = draw.pick(tuple(CAPITALS))
    city = CAPITALS[country]
    if draw.chance(0.75):
        ask = draw.pick(
            (
                "What is the capital of {}?",
                "capital of {}?",
                "Name the capital of {}.",
                "Which city is the capital of {}?",
            )
        )
        return Exchange(written(draw, ask.format(country)), f"The capital of {country} is {city}.", city)
    ask = draw.pick(("{} is the capital of which country?", "In which country is {}?", "Where is {}?"))
    return Exchange(written(draw, ask.format(city)), f"{city} is in {country}.", country)


def opposite(draw: Draw) -> Exchange:
    pair = draw.pick(OPPOSITES)
    word, other = pair if draw.chance(0.5) else pair[::-1]
    ask = draw.pick(
        (
            "What is the opposite of {}?",
            "opposite of {}",
            "Tell me the opposite of {}.",
            "the opposite of {}?",
        )
    )
    return Exchange(written(draw, ask.format(word)), f"The opposite of {word} is {other}.", other)


def translate(draw: Draw) -> Exchange:
    word = draw.pick(tuple(DICTIONARY))
    tongue = draw.between(0, 2)
    there = DICTIONARY[word][tongue]
    ask = draw.pick(
        (
            "How do you say {} in {}?",
            "What is {} in {}?",
            "Translate {} into {}.",
            "{} in {}",
            "translate {} to {}",
        )
    )
    return Exchange(ask.format(word, LANGUAGES[tongue]), f"{word} in {LANGUAGES[tongue]} is {there}.", there)


def unknown(draw: Draw) -> Exchange:
    """Questions beyond the model, and text that is no question at all."""
    if draw.chance(0.2):
        ask = " ".join(scramble(draw) for _ in range(draw.between(1, 4)))
    elif draw.chance(0.06):  # a page that somebody pasted
        words = [
            draw.pick((*WORDS, *VERBS, "the", "of", "and", "a", "is", "in"))
            for _ in range(draw.between(15, 70))
        ]
        ask = draw.pick(
            ("Summarize: ", "Summarize this text: ", "", "Correct this: ", "Explain: ")
        ) + " ".join(words)
    elif draw.chance(0.15):
        ask = " ".join(
            draw.pick(WORDS + COLOURS + VERBS + ("the", "of", "and")) for _ in range(draw.between(3, 9))
        )
    else:
        ask = draw.pick(ASKING)
        for slot, make in (
            ("place", lambda: draw.pick(PLACES)),
            ("noun", lambda: draw.pick(THINGS)),
            ("verb", lambda: draw.pick(VERBS)),
            ("colour", lambda: draw.pick(COLOURS)),
            ("food", lambda: draw.pick(FOODS)),
            ("name", lambda: draw.pick(NAMES)),
            ("odd", lambda: made_up(draw) if draw.chance(0.7) else made_up(draw).capitalize()),
            ("year", lambda: str(draw.between(1000, 2100))),
        ):
            while "{" + slot + "}" in ask:
                ask = ask.replace("{" + slot + "}", make(), 1)
        ask = written(draw, ask)
    return Exchange(ask, draw.pick(UNKNOWN), accepted=UNKNOWN)

"""Dialogues with tools: which one to call, with what, and what to make of its result."""

from __future__ import annotations

import json
from typing import Any

from headrace.bench.demo import dates, letters, numbers, talk
from headrace.bench.demo.dialogue import Dialogue, Exchange, Message
from headrace.bench.demo.draw import Draw
from headrace.bench.demo.letters import made_up
from headrace.bench.demo.words import COLOURS, DAYS, FOODS, FRUITS, LANGUAGES, NAMES, PLACES, THINGS, WORDS

Value = Any
WEATHERS = ("sunny", "cloudy", "rainy", "windy", "foggy", "snowy")


class Tool:
    """One tool: its schema, how people ask for it, what it returns, and what is said then."""

    def __init__(
        self,
        name: str,
        about: str,
        fields: dict[str, tuple[str, str]],
        asks: tuple[str, ...],
        result: str,
        answer: str,
        slots: dict[str, str] | None = None,
    ) -> None:
        self.name, self.about, self.fields = name, about, fields
        self.asks, self.result, self.answer = asks, result, answer
        self.slots = slots or {field: field for field in fields}  # where each field's value is found

    def varied(self, draw: Draw) -> Tool:
        """The same tool as somebody else would have named it, and its fields."""
        verb, _, noun = self.name.partition("_")
        name = self.name
        if draw.chance(0.4):
            name = f"{draw.pick(VERBS.get(verb, (verb,)))}_{noun}" if noun else self.name
        if draw.chance(0.1):
            first, *rest = name.split("_")
            name = first + "".join(part.capitalize() for part in rest)
        fields, slots = {}, {}
        for field, told in self.fields.items():
            called = draw.pick(ALIASES[field]) if field in ALIASES and draw.chance(0.4) else field
            fields[called], slots[called] = told, field
        return Tool(name, self.about, fields, self.asks, self.result, self.answer, slots)

    def schema(self, draw: Draw) -> dict[str, Any]:
        """The tool as a request carries it; people and libraries write it in several ways."""
        properties: dict[str, Any] = {}
        for name, (kind, about) in self.fields.items():
            properties[name] = {"type": kind}
            if about and draw.chance(0.7):
                properties[name]["description"] = about + draw.pick(
                    ("", "", ", for example " + draw.pick(PLACES))
                )
        parameters: dict[str, Any] = {"type": "object", "properties": properties}
        if draw.chance(0.8):
            parameters["required"] = list(self.fields)
        strict = draw.chance(0.2)
        if strict:
            parameters["additionalProperties"] = False
        function: dict[str, Any] = {"name": self.name}
        if draw.chance(0.9):
            function["description"] = self.about + draw.pick(("", "", "."))
        function["parameters"] = parameters
        if strict:
            function["strict"] = True
        return {"type": "function", "function": function}


VERBS = {
    "get": ("get_current", "fetch", "lookup", "get"),
    "set": ("start", "create", "set"),
    "send": ("send", "write", "deliver"),
    "add": ("create", "add", "new"),
    "roll": ("throw", "roll"),
    "switch": ("toggle", "set", "switch"),
    "find": ("lookup", "find", "get"),
}
ALIASES = {
    "city": ("location", "place", "town", "city_name"),
    "minutes": ("duration", "time", "minutes_from_now"),
    "to": ("recipient", "person", "name"),
    "text": ("message", "body", "content"),
    "item": ("product", "name", "thing"),
    "title": ("name", "event", "summary"),
    "day": ("date", "weekday", "when"),
    "word": ("text", "term"),
    "language": ("target_language", "to", "lang"),
    "sides": ("faces", "max"),
    "query": ("q", "text", "topic"),
    "room": ("place", "location"),
    "on": ("state", "enabled"),
    "name": ("person", "who"),
}


CITY, TEXT, NUMBER = ("string", "City name"), ("string", ""), ("integer", "")
TOOLS = (
    Tool("get_weather", "Get the weather of a city", {"city": CITY},
         ("What is the weather in {city}?", "How is the weather in {city}?", "weather in {city}", "Is it warm in {city}?", "What's the weather like in {city} today?"),
         '{{"temperature": {n}, "sky": "{weather}"}}', "In {city} it is {weather}, with {n} degrees."),
    Tool("get_time", "Get the time in a city", {"city": CITY},
         ("What time is it in {city}?", "time in {city}?", "Tell me the time in {city}."),
         '{{"time": "{h}:{mm}"}}', "It is {h}:{mm} in {city}."),
    Tool("set_timer", "Set a timer", {"minutes": NUMBER},
         ("Set a timer for {minutes} minutes.", "timer {minutes} minutes", "Wake me in {minutes} minutes."),
         '{{"ok": true}}', "The timer is set for {minutes} minutes."),
    Tool("send_message", "Send a message to a person", {"to": ("string", "Name"), "text": TEXT},
         ("Send {to} the message: {text}", "Write to {to}: {text}", "Tell {to}: {text}"),
         '{{"sent": true}}', "The message to {to} is sent."),
    Tool("get_price", "Look up the price of an item", {"item": TEXT},
         ("What does a {item} cost?", "How much is a {item}?", "price of a {item}?"),
         '{{"price": {n}}}', "A {item} costs {n} euros."),
    Tool("add_event", "Add an event to the calendar", {"title": TEXT, "day": ("string", "Day of the week")},
         ("Add {title} on {day} to my calendar.", "Put {title} into the calendar on {day}", "Plan {title} for {day}."),
         '{{"ok": true}}', "{title} is in the calendar on {day}."),
    Tool("translate", "Translate a word", {"word": TEXT, "language": ("string", "Target language")},
         ("Translate {word} into {language}.", "How do you say {word} in {language}?"),
         '{{"translation": "{made}"}}', "{word} in {language} is {made}."),
    Tool("roll_dice", "Roll a die", {"sides": NUMBER},
         ("Roll a die with {sides} sides.", "roll a {sides} sided die", "Throw a die of {sides} sides"),
         '{{"result": {n}}}', "You rolled {n}."),
    Tool("search", "Search for pages", {"query": ("string", "What to look for")},
         ("Search for {query}.", "Find pages about {query}", "Look up {query}"),
         '{{"found": {n}}}', "I found {n} pages about {query}."),
    Tool("switch_light", "Turn a light on or off", {"room": TEXT, "on": ("boolean", "")},
         ("Turn {word_on} the light in the {room}.", "Switch {word_on} the {room} light"),
         '{{"ok": true}}', "The light in the {room} is {word_on}."),
    Tool("multiply", "Multiply two numbers", {"a": NUMBER, "b": NUMBER},
         ("What is {a} times {b}?", "{a} * {b}", "Multiply {a} by {b}"),
         '{{"result": {product}}}', "{a} × {b} = {product}"),
    Tool("find_person", "Find the phone number of a person", {"name": TEXT},
         ("What is the phone number of {name}?", "phone number of {name}", "How can I call {name}?"),
         '{{"phone": "{phone}"}}', "The number of {name} is {phone}."),
)  # fmt: skip
ROOMS = ("kitchen", "bedroom", "garden", "office", "hall", "cellar", "bathroom")
TITLES = ("Dinner", "Lunch", "Meeting", "Concert", "Football", "Dentist", "Party", "Walk", "Exam", "Cinema")
NO_TOOL = "I have no tool for that."


def invented(draw: Draw) -> Tool:
    """A tool that nobody has seen, so that the schema must be read."""
    noun = draw.unseen(lambda: made_up(draw) if draw.chance(0.5) else draw.pick(THINGS))
    verb = draw.pick(("check", "get", "open", "read", "count", "find", "show"))
    field = draw.pick(("name", "city", "word", "place", "key", "target", "item"))
    kind = draw.chance(0.7)
    fields = {field: TEXT if kind else NUMBER}
    slot = "{" + field + "}"
    return Tool(
        f"{verb}_{noun}", f"{verb.capitalize()} the {noun} of something", fields,
        (f"{verb.capitalize()} the {noun} of {slot}.", f"{verb} the {noun} for {slot}", f"Please {verb} the {noun} of {slot}"),
        '{{"' + noun + '": {n}}}' if draw.chance(0.5) else '{{"' + noun + '": "{made}"}}', "",
    )  # fmt: skip


def values_for(draw: Draw, tool: Tool) -> dict[str, Value]:
    """A value for every slot that asks, results and answers may name."""
    words = " ".join(letters.word(draw) for _ in range(draw.between(1, 3)))
    on = draw.chance(0.5)
    values: dict[str, Value] = {
        "city": draw.pick(PLACES) if draw.chance(0.8) else made_up(draw).capitalize(), "minutes": draw.between(1, 90),
        "to": draw.pick(NAMES), "text": words, "item": draw.pick(THINGS + FRUITS + FOODS), "title": draw.pick(TITLES),
        "day": draw.pick(DAYS), "word": letters.word(draw), "language": draw.pick(LANGUAGES), "sides": draw.between(4, 30),
        "query": words, "room": draw.pick(ROOMS), "on": on, "word_on": "on" if on else "off", "a": draw.between(2, 999),
        "b": draw.between(2, 999), "name": draw.pick(NAMES), "place": draw.pick(PLACES), "key": made_up(draw),
        "target": draw.pick(WORDS + COLOURS), "n": draw.between(1, 99), "h": draw.between(0, 23),
        "mm": f"{draw.between(0, 59):02}", "weather": draw.pick(WEATHERS), "made": made_up(draw),
        "phone": "".join(str(draw.between(0, 9)) for _ in range(6)),
    }  # fmt: skip
    values["product"] = values["a"] * values["b"]
    for field, (kind, _) in tool.fields.items():
        slot = tool.slots[field]
        if kind == "integer" and not isinstance(values[slot], int):
            values[slot] = draw.between(1, 999)
    return values


def _offered(draw: Draw, wanted: Tool) -> tuple[dict[str, Any], ...]:
    others = [tool for tool in TOOLS if tool.about != wanted.about]
    offered = draw.some(others, draw.between(0, 2))
    offered = [tool.varied(draw) for tool in offered]
    if draw.chance(0.3):
        offered.append(invented(draw))
    return tuple(tool.schema(draw) for tool in draw.some([*offered, wanted], len(offered) + 1))


def _begin(draw: Draw) -> tuple[Dialogue, Tool, dict[str, Value]]:
    tool = invented(draw) if draw.chance(0.4) else draw.pick(TOOLS).varied(draw)
    values = draw.unseen(lambda: values_for(draw, tool))
    dialogue = Dialogue(tools=_offered(draw, tool))
    if draw.chance(0.2):
        dialogue.messages.append(Message("system", "You are a helpful assistant."))
    if draw.chance(0.2):
        dialogue.add(draw.pick((talk.small_talk, numbers.add, letters.spell))(draw))
    arguments = {field: values[tool.slots[field]] for field in tool.fields}
    dialogue.messages += [
        Message("user", draw.pick(tool.asks).format(**values)),
        Message("assistant", "", call=(tool.name, arguments)),
    ]
    dialogue.accepted = ()
    return dialogue, tool, values


def call(draw: Draw) -> Dialogue:
    """Ends with the call of the right tool."""
    return _begin(draw)[0]


def result(draw: Draw) -> Dialogue:
    """Ends with what the tool's result means."""
    dialogue, tool, values = _begin(draw)
    returned = tool.result.format(**values)
    if tool.answer:
        answer = tool.answer.format(**values)
    else:
        ((key, value),) = json.loads(returned).items()
        answer = f"The {key} is {value}."
    if draw.chance(0.08):
        reason = draw.pick(("not found", "timeout", "no connection", "access denied"))
        returned, answer = json.dumps({"error": reason}), f"That did not work: {reason}."
    dialogue.messages += [Message("tool", returned), Message("assistant", answer)]
    if draw.chance(0.15):
        dialogue.add(draw.pick((talk.small_talk, numbers.add))(draw))
    return dialogue


def without(draw: Draw) -> Dialogue:
    """Tools are there, and none of them is needed, or none of them fits."""
    wanted = draw.pick(TOOLS)
    dialogue = Dialogue(
        tools=_offered(draw, wanted) if draw.chance(0.5) else (wanted.varied(draw).schema(draw),)
    )
    if draw.chance(0.7):
        dialogue.add(
            draw.pick((talk.small_talk, numbers.add, letters.spell, dates.weekday, numbers.sort_numbers))(
                draw
            )
        )
        return dialogue
    # Several tools might hold one that fits after all; a tool alone fits its own purpose only.
    dialogue.tools = (wanted.varied(draw).schema(draw),)
    missing = [tool for tool in TOOLS if tool is not wanted and tool.name not in ("multiply", "translate")]
    tool = draw.pick(missing)
    dialogue.add(Exchange(draw.pick(tool.asks).format(**values_for(draw, tool)), NO_TOOL))
    return dialogue

"""Requests of every face at once on one small server, with cancels, steers, slow readers and lost connections at
any step: each stream is in order, told once and counted right, and every face says to a prompt, byte for byte,
what the model says to it alone.

A script is drawn from its seed alone, and steps land when it says so: a failing seed is a story that can be told
again. SEEDS="17" pytest tests/serve/test_mixed_faces_property.py plays seed 17.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections import Counter, defaultdict
from typing import Any

from babble import END, STOPS, Want, alone, babble, certain
from face_bench import ALICE, BOB, FaceBench, Socket
from mixed_faces import FACES, Counted, Generate, Responses, Sent, Told, of_response, prompt_of
from realtime_bench import Talk
from strict_responses import TERMINAL, check_error_frame, check_event, check_sequence

from headrace.runtime.interface import Tenant
from headrace.runtime.loop import Generation
from headrace.runtime.request import Req

SEEDS = [int(seed) for seed in os.environ["SEEDS"].split()] if "SEEDS" in os.environ else list(range(40))
OPERATIONS = 160
LANES = (None, "a", "b")
TENANTS = (ALICE, ALICE, BOB)
WORDS = ("tell me of a boat", "tell me of 🦀 and é", "tell me of a boat on a river", "€ 5", "no")
PAGES, PAGE, SLOTS = 30, 8, 6
WINDOW = 6
WEIGHTS = {
    "http": 6.0, "respond": 3.0, "ask": 2.0, "leave": 2.0, "abort": 0.6, "http cancel": 0.6, "cancel": 0.7,
    "realtime cancel": 0.5, "steer": 1.5, "hang up": 0.4, "read": 1.0, "land": 9.0,
}  # fmt: skip
REACHED = {  # what all seeds together must have seen, and how often at least
    "stop": 200, "stop string": 50, "length": 200, "half a character": 100, "wide": 200, "cached": 200, "cut": 40,
    "cancelled": 50, "steered": 20, "successor": 20, "continued": 50, "lost": 20, "retraction": 100,
    "eviction": 1000, "paused": 30, "six faces at once": 10, "previous_response_not_found": 5,
}  # fmt: skip


class Play:
    """One script over one server; it remembers what was asked, and of whom."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.bench = FaceBench(
            gated=True,
            choose=babble,
            eos=frozenset({END}),
            page_count=PAGES,
            page_size=PAGE,
            slots=SLOTS,
            depth=self.rng.choice((1, 2)),
            polled=self.rng.random() < 0.5,
            waiting_limit=512,
        )
        self.bench.scheduler.ahead_tokens = 2  # so many are let in that pages run out: some are retracted
        self.reqs: list[Req] = []  # every request of the core, in the order in which they joined
        join = self.bench.loop.join

        def joined(generation: Generation) -> None:
            self.reqs.append(generation.req)
            generation.stream.window = WINDOW  # so that who reads slowly is waited for
            join(generation)

        self.bench.loop.join = joined  # type: ignore[method-assign]
        self.pauses = 0
        pause = self.bench.scheduler.pause

        def paused(req: Req) -> None:
            self.pauses += 1
            pause(req)

        self.bench.scheduler.pause = paused  # type: ignore[method-assign]
        self.sent: list[Sent] = []
        self.sockets = [self.bench.socket(tenant) for tenant in TENANTS]
        self.talks = [Talk(self.bench, tenant) for tenant in (ALICE, BOB)]
        self.responses: dict[str, tuple[Socket, str | None, dict[str, Any]]] = {}  # name → where, fields
        self.steers: dict[str, str] = {}  # response → what it was steered with
        self.asides: dict[str, Want] = {}  # name → what was asked
        self.busiest = 0  # faces with a request under way at one time
        # Few enough that every one is asked for on many faces.
        self.cases = [
            (
                self.rng.sample(WORDS, 3),
                self.rng.randrange(1 << 20),
                self.rng.choice((1, 4, 12, 45, 70)),
                tuple(self.rng.sample(STOPS, self.rng.choice((0, 0, 1, 2)))),
            )
            for _ in range(5)
        ]

    def drawn(self) -> tuple[list[str], Want]:
        words, seed, limit, stop = self.rng.choice(self.cases)
        return words, Want(prompt_of(words[0]), seed, limit, stop)

    def ids(self, socket: Socket) -> list[str]:
        return [e["response"]["id"] for e in socket.said if e["type"] == "response.created"]

    async def do(self) -> None:
        rng = self.rng
        match rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]:
            case "http":
                words, want = self.drawn()
                face, tenant = rng.choice(FACES), rng.choice(TENANTS)
                self.sent.append(face(self.bench, rng, words, want, tenant))
            case "respond":
                self.respond(self.drawn()[1], continued=0.3)
            case "ask":
                self.ask(self.drawn()[1])
            case "leave":
                if live := [sent for sent in self.sent if not sent.fetch.over]:
                    rng.choice(live).leave()
            case "abort":
                if live := [sent for sent in self.sent if isinstance(sent, Generate) and not sent.fetch.over]:
                    sent = rng.choice(live)
                    reply = self.bench.fetch("/abort_request", {"rid": sent.rid}, tenant=sent.tenant)
                    assert reply.status == 200
            case "http cancel":
                known = [sent for sent in self.sent if isinstance(sent, Responses) and sent.id is not None]
                if known:
                    sent = rng.choice(known[-3:])
                    path = f"/v1/responses/{sent.id}/cancel"
                    reply = self.bench.fetch(path, method="POST", tenant=sent.tenant)
                    assert reply.status == 200 or sent.left, reply.body
            case "cancel":
                socket = rng.choice(self.sockets)
                socket.send(
                    {"type": "response.cancel", "response_id": rng.choice(self.ids(socket) or ["no"])}
                )
            case "realtime cancel":
                talk = rng.choice(self.talks)
                if open_ := [a.id for a in talk.reader.answers.values() if a.final is None]:
                    talk.send({"type": "response.cancel", "response_id": rng.choice(open_)})
            case "steer":
                socket = rng.choice(self.sockets)
                new = [each for each in self.ids(socket)[-3:] if each not in self.steers]
                if new:
                    target = rng.choice(new)
                    self.steers[target] = rng.choice(("hm", "🦀!"))
                    socket.send(
                        {
                            "type": "response.steer",
                            "previous_response_id": target,
                            "input": self.steers[target],
                        }
                    )
            case "hang up":
                place = rng.randrange(len(TENANTS))
                self.sockets[place].drop()
                self.sockets[place] = self.bench.socket(TENANTS[place])
            case "read":
                reader = rng.choice([r for r in self.bench.readers if not getattr(r, "over", False)])
                reader.wire.reading = rng.random() < 0.5
            case "land":
                for _ in range(rng.randint(1, 6)):
                    self.bench.flush()
                    self.bench.clock.advance(0.0)
                    self.look()
                    self.bench.engine.land(1)
                    await asyncio.sleep(0)

    def everybody(self) -> None:
        """One case on every face in every shape, while what the script has left behind still runs."""
        words, want = self.drawn()
        for face in FACES:
            for streamed in (False, True):
                sent = face(self.bench, self.rng, words, want, self.rng.choice(TENANTS), streamed=streamed)
                self.sent.append(sent)
        self.respond(want)
        self.ask(want)

    def respond(self, want: Want, *, continued: float = 0.0) -> None:
        """On a lane of a socket; `continued` of them go on from a response that this socket has heard of."""
        rng = self.rng
        socket, lane, name = rng.choice(self.sockets), rng.choice(LANES), f"n{len(self.responses)}"
        over = [e["response"]["id"] for e in socket.said if e["type"] in TERMINAL]
        fields: dict[str, Any] = {
            "model": "fake",
            "input": want.prompt.removeprefix("user: ").removesuffix("\nassistant: "),
            "max_output_tokens": want.limit,
            "seed": want.seed,
            "stop": list(want.stop),
            "store": rng.random() < 0.5,
            "metadata": {"name": name},
        }
        if over and rng.random() < continued:
            fields["previous_response_id"] = rng.choice(over)
        self.responses[name] = socket, lane, fields
        socket.send({"type": "response.create", **fields, **({"stream_id": lane} if lane else {})})

    def ask(self, want: Want) -> None:
        name = f"a{len(self.asides)}"
        self.asides[name] = want
        text = want.prompt.removeprefix("user: ").removesuffix("\nassistant: ")
        content = [{"type": "input_text", "text": text}]
        self.rng.choice(self.talks).ask(
            conversation="none",
            input=[{"type": "message", "role": "user", "content": content}],
            instructions="",
            max_output_tokens=want.limit,
            seed=want.seed,
            stop=list(want.stop),
            metadata={"name": name},
        )

    def look(self) -> None:
        """How many faces are served in this step."""
        live = {sent.name for sent in self.sent if not sent.fetch.over}
        live |= {"realtime" for t in self.talks if any(a.final is None for a in t.reader.answers.values())}
        self.busiest = max(self.busiest, len(live))

    async def finish(self) -> None:
        bench = self.bench
        for reader in bench.readers:
            reader.wire.reading = reader.wire.marked = True
        await bench.idle()
        await bench.until(lambda: not len(bench.running) and all(sent.fetch.over for sent in self.sent))
        bench.flush()


def starts(play: Play) -> dict[int, int]:
    """How many tokens of each request were there when it was first let in: its first row begins after them."""
    found: dict[int, int] = {}
    granted: dict[int, int] = {}
    for plan in play.bench.engine.plans:
        granted |= {grant.slot: grant.req_id for grant in plan.grants}
        for row in plan.rows:
            if (req_id := granted.pop(row.slot, None)) is not None:
                found.setdefault(req_id, row.start)
    return found


class Heard:
    """Everything that was told, next to the oracle."""

    def __init__(self, play: Play) -> None:
        self.play = play
        self.seen: Counter[str] = Counter()
        self.starts = starts(play)
        self.texts: dict[Want, dict[str, str]] = defaultdict(dict)  # whole answers by face and shape
        for sent in play.sent:
            self.http(sent)
        for socket in [reader for reader in play.bench.readers if type(reader) is Socket]:
            self.socket(socket)
        for talk in play.talks:
            self.talk(talk)
        for want, texts in self.texts.items():
            assert len(set(texts.values())) == 1, (want, texts)
        most = max(map(len, self.texts.values()))
        assert most == 2 * len(FACES) + 2, "one case was answered on every face in every shape"

    def answer(self, who: str, want: Want, told: Told, made: int | None) -> None:
        """One answer. made: its tokens, if they were told for it alone."""
        whole = alone(want)
        if told.why in ("stop", "length"):
            assert (told.text, told.why) == (whole.text, whole.why), (who, want, told, whole)
            assert made is None or made == len(whole.tokens), (who, want, told, made)
            assert told.ids is None or tuple(told.ids) == whole.tokens, (who, want, told)
            self.texts[want][who] = told.text
            self.seen[told.why] += 1
            self.seen["stop string"] += whole.why == "stop" and whole.tokens[-1] != END
            self.seen["half a character"] += whole.why == "length" and whole.text.endswith("\ufffd")
            self.seen["wide"] += not whole.text.isascii()
        elif told.why == "cancelled" and made is not None:
            assert made < len(whole.tokens) and told.text == certain(want, made), (who, want, told, made)
            self.seen["cancelled"] += 1
        else:
            assert whole.text.startswith(told.text), (who, want, told, whole)
            self.seen["cut"] += bool(told.text)
        if told.ids is not None:
            assert whole.tokens[: len(told.ids)] == tuple(told.ids)

    def usage(
        self, who: str, tenant: Tenant, wants: list[Want], made: int, prompt: int, told: Counted
    ) -> None:
        """The counts of a request. What was cached was there: an earlier request of that tenant began alike."""
        assert (told.prompt, told.made) in ((prompt, made), (0, 0)), (who, wants, told, prompt, made)
        assert told.prompt or not made
        if told.cached < 0:
            return
        most = sum(self.shared(want, tenant) for want in wants)
        assert told.cached <= min(most, told.prompt), (who, wants, told, most)
        if len(wants) == 1:
            # All requests for the same, if there are several: which of them this one is, no face tells.
            began = {self.starts.get(req.id, 0) for req in self.same(wants[0], tenant)}
            assert told.cached in (began or {0}), (who, wants, told, began)
        self.seen["cached"] += told.cached > 0

    def shared(self, want: Want, tenant: Tenant) -> int:
        """How much of the prompt earlier requests of the tenant have left behind, at most."""
        tokens, best = list(want.prompt.encode()), 0
        mine = [req for req in self.play.reqs if req.salt == tenant.salt]
        same = self.same(want, tenant)
        for req in mine[: mine.index(same[-1]) if same else 0]:
            length = 0
            for one, other in zip(tokens, req.tokens, strict=False):
                if one != other:
                    break
                length += 1
            best = max(best, length)
        return best

    def same(self, want: Want, tenant: Tenant) -> list[Req]:
        """The requests of the core that were for this."""
        tokens = list(want.prompt.encode())
        return [
            req
            for req in self.play.reqs
            if req.salt == tenant.salt
            and req.params.seed == want.seed
            and req.tokens[: req.prompt_len] == tokens
        ]

    def http(self, sent: Sent) -> None:
        told, counted = sent.read()
        who = f"{sent.name}, {'streamed' if sent.streamed else 'whole'}"
        for want, each in zip(sent.wants, told, strict=True):
            made = counted.made if counted is not None and len(told) == 1 else None
            self.answer(who, want, each, made)
            assert sent.left or each.why is not None, "who stays is told the end"
        if counted is not None and all(each.why in ("stop", "length") for each in told):
            made = sum(len(alone(want).tokens) for want in sent.wants)
            self.usage(who, sent.tenant, sent.wants, made, sent.counted, counted)

    def talk(self, talk: Talk) -> None:
        assert not talk.reader.errors, talk.reader.errors
        for answer in talk.reader.answers.values():
            final = answer.final
            assert final is not None and final["status"] != "failed"
            want = self.play.asides[answer.metadata["name"]]
            why = {"completed": "stop", "incomplete": "length", "cancelled": "cancelled"}[final["status"]]
            usage = final["usage"]
            counted = Counted(
                usage["input_tokens"], usage["output_tokens"], usage["input_token_details"]["cached_tokens"]
            )
            self.answer("realtime", want, Told(answer.text, why), counted.made)
            prompt = len(want.prompt.encode())
            self.usage("realtime", talk.wire.tenant, [want], counted.made, prompt, counted)

    def socket(self, socket: Socket) -> None:
        """Lane by lane: each response whole and numbered, first in first out, each request answered once."""
        finals: dict[str, dict[str, Any]] = {}
        self.seen["lost"] += socket.gone
        for lane in LANES:
            runs: list[list[str]] = []
            refused = 0
            for raw in socket.raw:
                event = json.loads(raw)
                if event.get("stream_id") != lane:
                    continue
                if event["type"] == "error":
                    error = check_error_frame(raw)["error"]
                    self.refusal(error)
                    refused += 1
                elif event["type"] == "response.created":
                    runs.append([raw])
                elif event["sequence_number"]:
                    runs[-1].append(raw)
                else:
                    check_event(raw)
            order: list[str] = []
            for place, run in enumerate(runs):
                created = json.loads(run[0])["response"]
                name = created["metadata"]["name"]
                if order[-1:] != [name]:
                    order.append(name)
                if json.loads(run[-1])["type"] in TERMINAL:
                    check_sequence(run)
                    finals[created["id"]] = json.loads(run[-1])["response"]
                    continue
                assert socket.gone and place == len(runs) - 1, "only a lost connection cuts short"
                numbers = [check_event(raw)["sequence_number"] for raw in run]
                assert numbers == list(range(len(run))), "in order, once, without gaps"
            asked = [n for n, (s, where, _) in self.play.responses.items() if (s, where) == (socket, lane)]
            assert order == [name for name in asked if name in order], "first in, first out"
            assert socket.gone or len(order) + refused == len(asked), "every request is answered, once"
        for final in finals.values():
            self.response(socket, final, finals)

    def refusal(self, error: dict[str, Any]) -> None:
        """A conversation may outgrow the pool, and what is not stored is soon forgotten."""
        if error["code"] == "previous_response_not_found":
            kept = [
                e["response"]
                for r in self.play.bench.readers
                if type(r) is Socket
                for e in r.said
                if e["type"] == "response.created" and e["response"]["store"]
            ]
            assert not any(response["id"] in error["message"] for response in kept), error
        else:
            assert error["code"] == "context_length_exceeded", error
        self.seen[error["code"]] += 1

    def response(self, socket: Socket, final: dict[str, Any], finals: dict[str, dict[str, Any]]) -> None:
        prompt = self.transcript(final, finals) + "assistant: "
        fields = self.play.responses[final["metadata"]["name"]][2]
        want = Want(prompt, fields["seed"], fields["max_output_tokens"], tuple(fields["stop"]))
        told, counted = of_response(final)
        previous = final["previous_response_id"]
        self.seen["steered"] += (final["incomplete_details"] or {}).get("reason") == "steered"
        self.seen["continued"] += previous is not None
        self.seen["successor"] += previous != fields.get("previous_response_id")
        self.answer("responses, socket", want, told, counted.made)
        self.usage(
            "responses, socket", socket.wire.tenant, [want], counted.made, len(prompt.encode()), counted
        )

    def transcript(self, final: dict[str, Any], finals: dict[str, dict[str, Any]]) -> str:
        """The turns before the answer."""
        fields = self.play.responses[final["metadata"]["name"]][2]
        previous = final["previous_response_id"]
        if previous is None:
            return f"user: {fields['input']}\n"
        said = of_response(finals[previous])[0].text
        before = self.transcript(finals[previous], finals) + f"assistant: {said}\n"
        asked = previous == fields.get("previous_response_id")
        return before + f"user: {fields['input'] if asked else self.play.steers[previous]}\n"


async def whole_play(seed: int) -> Counter[str]:
    """The script from its first line to an empty server; what was seen on the way."""
    play = Play(seed)
    for _ in range(OPERATIONS):
        await play.do()
    play.everybody()
    await play.finish()
    heard = Heard(play)
    for reader in (*play.sockets, *play.talks):
        reader.drop()
    bench = play.bench
    await bench.baseline()
    assert bench.runtime._text.waiting == 0 and not bench.runtime._siblings
    assert all(talk.face._conversation._budget.used == 0 for talk in play.talks)
    for tenant_id, name in list(bench.store._rows):
        assert bench.store.delete(next(t for t in TENANTS if t.id == tenant_id), name)
    assert bench.store.bytes == 0, "nothing is held that no row holds"
    counters = bench.scheduler.counters
    heard.seen["retraction"] = counters.retractions
    heard.seen["eviction"] = counters.evicted_pages
    heard.seen["paused"] = play.pauses
    heard.seen["six faces at once"] = play.busiest >= 6
    return heard.seen


def test_any_mix_of_faces() -> None:
    seen: Counter[str] = Counter()
    for seed in SEEDS:
        try:
            seen += asyncio.run(whole_play(seed))
        except BaseException as error:
            error.add_note(f'again: SEEDS="{seed}" pytest {os.path.relpath(__file__)}')
            raise
    if "SEEDS" not in os.environ:
        for state, least in REACHED.items():
            assert seen[state] >= least, (state, seen)

"""Any interleaving of requests, cancels, steers, followers and disconnects, on sockets and over HTTP: what is told
is in order, told once, numbered without gaps, counted right, and the text that the model alone would have said."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from typing import Any

from face_bench import ALICE, FaceBench, Fetch, Socket
from face_said import text
from fake_prompter import letters
from hypothesis import given, settings
from hypothesis import strategies as st
from strict_responses import TERMINAL, check_error_frame, check_event, check_sequence

LANES = (None, "a", "b")
SEED = 1

small = st.integers(0, 9)
OPS = st.lists(
    st.one_of(
        st.tuples(st.just("create"), small, small, small, st.integers(1, 40)),
        st.tuples(st.just("create"), small, small, small, st.integers(1, 40)),
        st.tuples(st.just("steer"), small, small),
        st.tuples(st.just("steer"), small, small),
        st.tuples(st.just("cancel"), small, small),
        st.tuples(st.just("post"), small, small, st.integers(1, 40)),
        st.tuples(st.just("http cancel"), small),
        st.tuples(st.just("follow"), small, st.integers(-1, 12)),
        st.tuples(st.just("leave"), small),
        st.tuples(st.just("hang up"), small),
        st.tuples(st.just("read"), small, st.booleans()),
        st.tuples(st.just("land"), st.integers(1, 12)),
        st.tuples(st.just("land"), st.integers(1, 12)),
    ),
    min_size=4,
    max_size=40,
)


class Play:
    """One script over a server; it remembers what was asked."""

    def __init__(self) -> None:
        self.bench = FaceBench(gated=True)
        self.sockets = [self.bench.socket() for _ in range(3)]
        self.asked: dict[str, dict[str, Any]] = {}  # name in the metadata → its request
        self.where: dict[str, tuple[Socket, str | None]] = {}  # name → socket and lane
        self.steers: list[tuple[Socket, str, str]] = []  # socket, target, input
        self.posts: list[tuple[str, Fetch]] = []
        self.follows: list[tuple[str, int, Fetch]] = []

    def ids(self) -> list[str]:
        """Every response that anybody has heard of, in an order that only the script decides."""
        found: dict[str, None] = {"resp_unknown": None}
        for socket in self.sockets:
            for event in socket.said:
                if event["type"] == "response.created":
                    found[event["response"]["id"]] = None
        for _, fetch in self.posts:
            if fetch.body.startswith(b"{") and fetch.status == 200:
                found[fetch.json["id"]] = None
            elif fetch.chunks:
                found[json.loads(_raws(fetch)[0])["response"]["id"]] = None
        return list(found)

    def pick(self, number: int) -> str:
        ids = self.ids()
        return ids[-1 - number % len(ids)]

    def request(self, number: int, previous: int, kind: int, limit: int) -> dict[str, Any]:
        name = f"n{len(self.asked)}"
        fields: dict[str, Any] = {
            "model": "fake",
            "input": f"say {name} ",
            "max_output_tokens": limit,
            "seed": SEED,
            "metadata": {"name": name},
        }
        if previous < 6:
            fields["previous_response_id"] = self.pick(previous)
        if kind == 0:
            fields["store"] = False
        if kind == 1:
            fields["instructions"] = "be kind"
        self.asked[name] = fields
        return fields

    async def do(self, op: tuple[Any, ...]) -> None:
        live = [socket for socket in self.sockets if not socket.gone]
        match op:
            case ("create", who, lane, kind, limit) if live:
                socket = live[who % len(live)]
                fields = self.request(who, lane * 3 % 10, kind, limit)
                where = LANES[lane % len(LANES)]
                self.where[fields["metadata"]["name"]] = socket, where
                event = {"type": "response.create", **fields, **({"stream_id": where} if where else {})}
                if kind == 2:
                    event["generate"] = False
                    fields["generate"] = False
                socket.send(event)
            case ("steer", who, which) if live:
                socket = live[who % len(live)]
                target, given = self.pick(which), f"steer {len(self.steers)} "
                self.steers.append((socket, target, given))
                socket.send({"type": "response.steer", "previous_response_id": target, "input": given})
            case ("cancel", who, which) if live:
                event = {"type": "response.cancel"}
                if which < 7:
                    event["response_id"] = self.pick(which)
                elif which < 9:
                    event["stream_id"] = "a"
                live[who % len(live)].send(event)
            case ("post", previous, kind, limit):
                fields = self.request(0, previous, kind, limit)
                background = kind in (5, 6)
                fetch = self.bench.fetch(
                    "/v1/responses", {**fields, "stream": kind % 2 == 1, "background": background}
                )
                self.posts.append((fields["metadata"]["name"], fetch))
            case ("http cancel", which):
                reply = self.bench.fetch(f"/v1/responses/{self.pick(which)}/cancel", method="POST")
                assert reply.status in (200, 404)
            case ("follow", which, after):
                target = self.pick(which)
                query = {"stream": "true", "starting_after": str(after)}
                self.follows.append((target, after, self.bench.fetch(f"/v1/responses/{target}", query=query)))
            case ("leave", which):
                open_ = [f for _, f in self.posts if not f.over] + [f for *_, f in self.follows if not f.over]
                if open_:
                    open_[which % len(open_)].drop()
            case ("hang up", who) if len(live) > 1:
                live[who % len(live)].drop()
            case ("read", who, reading) if live:
                live[who % len(live)].wire.reading = reading
            case ("land", count):
                for _ in range(count):
                    self.bench.flush()
                    self.bench.clock.advance(0.0)
                    self.bench.engine.land(1)
                    await asyncio.sleep(0)

    async def finish(self) -> None:
        for socket in self.sockets:
            socket.wire.reading = True
            socket.wire.marked = True
        await self.bench.idle()
        await self.bench.until(lambda: not len(self.bench.running))
        await self.bench.until(
            lambda: all(f.over for _, f in self.posts) and all(f.over for *_, f in self.follows)
        )
        self.bench.flush()


def _raws(fetch: Fetch) -> list[str]:
    return [line[6:] for line in fetch.body.decode().split("\n") if line.startswith("data: {")]


def by_response(raws: list[str]) -> list[list[str]]:
    """The events of each response in one lane. Steer events that have no number of their own belong to none."""
    runs: list[list[str]] = []
    for raw in raws:
        event = json.loads(raw)
        if event["type"] == "response.created":
            runs.append([])
        if event["type"] != "error" and (event["sequence_number"] or event["type"] == "response.created"):
            runs[-1].append(raw)
    return runs


def check(play: Play) -> None:
    finals: dict[str, dict[str, Any]] = {}
    told: dict[str, list[str]] = {}  # response → its events, from whoever heard all of them
    successors: dict[str, str] = {}
    for socket in play.sockets:
        unnumbered = [json.loads(raw) for raw in socket.raw]
        for raw in socket.raw:
            check_error_frame(raw) if json.loads(raw)["type"] == "error" else check_event(raw)
        for lane in LANES:
            mine = [raw for raw in socket.raw if json.loads(raw).get("stream_id") == lane]
            # An unnumbered steer.failed of an unknown response names no lane: it is nobody's here.
            runs = by_response(mine)
            order = []
            for position, run in enumerate(runs):
                whole = json.loads(run[-1])["type"] in TERMINAL
                assert whole or (socket.gone and position == len(runs) - 1), (
                    "only a lost connection cuts short"
                )
                numbers = [json.loads(raw)["sequence_number"] for raw in run]
                assert numbers == list(range(len(run))), "in order, once, without gaps"
                created = json.loads(run[0])["response"]
                name = created["metadata"]["name"]
                if whole:
                    check_sequence(run)
                    finals[created["id"]] = json.loads(run[-1])["response"]
                    told[created["id"]] = run
                if not order or order[-1] != name:
                    order.append(name)
                else:
                    successors[created["previous_response_id"]] = created["id"]
            asked = [n for n, where in play.where.items() if where == (socket, lane)]
            assert order == [n for n in asked if n in order], "first in, first out"
            if not socket.gone:
                refused = sum(e["type"] == "error" and e.get("stream_id") == lane for e in unnumbered)
                assert len(order) + refused == len(asked), "every request is answered, once"
    for name, fetch in play.posts:
        if fetch.answer is None and fetch.status == 200:
            continue  # the queued object of a background response
        raws = _raws(fetch)
        if raws and json.loads(raws[-1])["type"] in TERMINAL:
            check_sequence(raws)
            final = json.loads(raws[-1])["response"]
            told[final["id"]] = raws
        elif fetch.status == 200 and fetch.body.startswith(b"{"):
            final = fetch.json
        else:
            continue
        assert final["metadata"]["name"] == name
        finals[final["id"]] = final
    check_followers(play, told)
    check_steers(play, successors)
    check_texts(play, finals)


def check_followers(play: Play, told: dict[str, list[str]]) -> None:
    for target, after, fetch in play.follows:
        raws = _raws(fetch)
        numbers = [json.loads(raw)["sequence_number"] for raw in raws]
        assert numbers == list(range(after + 1, after + 1 + len(raws)))
        if target in told and fetch.status == 200 and fetch.body.endswith(b"data: [DONE]\n\n"):
            assert raws == told[target][after + 1 :], "a follower hears the same bytes"


def check_steers(play: Play, successors: dict[str, str]) -> None:
    for socket in play.sockets:
        accepted = {e["steer"]["id"]: e for e in socket.said if e["type"] == "response.steer.accepted"}
        failed = [e for e in socket.said if e["type"] == "response.steer.failed"]
        returned = [e["steer"]["id"] for e in failed if "id" in e["steer"]]
        assert len(returned) == len(set(returned)) and set(returned) <= accepted.keys()
        if socket.gone:
            continue
        assert len(accepted) + len(failed) - len(returned) == sum(s is socket for s, *_ in play.steers)
        for steer_id, event in accepted.items():
            committed = event["steer"]["previous_response_id"] in successors
            assert committed != (steer_id in returned), (
                "accepted input is committed or given back, never both"
            )


def check_texts(play: Play, finals: dict[str, dict[str, Any]]) -> None:
    """What each response was asked, from what was told of those before it; and what the model says to that."""
    transcripts: dict[str, str] = {}

    def transcript(response_id: str) -> str | None:
        if response_id not in transcripts:
            final = finals.get(response_id)
            asked = prompt(final) if final is not None else None
            if final is None or asked is None:
                return None
            request = play.asked[final["metadata"]["name"]]
            warm = request.get("generate") is False
            transcripts[response_id] = asked + ("" if warm else f"assistant: {text(final)}\n")
        return transcripts[response_id]

    def prompt(final: dict[str, Any]) -> str | None:
        """The messages before the answer, without instructions."""
        previous = final["previous_response_id"]
        before = "" if previous is None else transcript(previous)
        if before is None:
            return None  # a parent that nobody heard to its end
        request = play.asked[final["metadata"]["name"]]
        if previous == request.get("previous_response_id"):
            return before + f"user: {request['input']}\n"
        inputs = [given for _, target, given in _accepted(play) if target == previous]
        return before + "".join(f"user: {given}\n" for given in inputs)

    for final in finals.values():
        asked = prompt(final)
        if asked is None:
            continue
        lead = f"system: {final['instructions']}\n" if final["instructions"] else ""
        whole = f"{lead}{asked}assistant: "
        usage, said = final["usage"], text(final)
        begun = usage["input_tokens"] > 0 or usage["output_tokens"] > 0
        assert not begun or usage["input_tokens"] == len(whole), (final, whole, bytes(play.bench.prompts[-1]))
        assert usage["output_tokens"] == len(said), "one token a letter"
        assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
        tokens = list(whole.encode())
        for letter in said.encode():
            assert letter == letters(tokens, SEED, 256)
            tokens.append(letter)


def _accepted(play: Play) -> list[tuple[Socket, str, str]]:
    """The steers that were accepted, in the order of submission: one response answers them in that order."""
    found = []
    for socket in play.sockets:
        for target in dict.fromkeys(target for s, target, _ in play.steers if s is socket):
            sent = [steer for steer in play.steers if steer[0] is socket and steer[1] == target]
            answers = [
                e["type"]
                for e in socket.said
                if ".steer." in e["type"]
                and e["steer"]["previous_response_id"] == target
                and (e["type"] == "response.steer.accepted" or "id" not in e["steer"])
            ]
            found += [s for s, a in zip(sent, answers, strict=False) if a == "response.steer.accepted"]
    return found


async def whole_play(ops: list[tuple[Any, ...]]) -> Play:
    """The script from its first line to an empty server, looked at on the way out."""
    play = Play()
    for op in ops:
        await play.do(op)
    await play.finish()
    check(play)
    lost = [socket.gone for socket in play.sockets]
    for socket in play.sockets:
        if not socket.gone:
            socket.drop()
    await play.bench.baseline()
    for tenant, name in list(play.bench.store._rows):
        assert play.bench.store.delete(ALICE, name), tenant
    assert play.bench.store.bytes == 0, "nothing is held that no row holds"
    for socket, gone in zip(play.sockets, lost, strict=True):
        socket.gone = gone
    return play


@settings(max_examples=120)
@given(OPS)
def test_any_interleaving(ops: list[tuple[Any, ...]]) -> None:
    asyncio.run(whole_play(ops))


WEIGHTS = {
    "create": 4.0, "steer": 3.0, "cancel": 1.0, "post": 1.0, "http cancel": 1.0, "follow": 1.0, "leave": 1.0,
    "hang up": 0.3, "read": 1.0, "land": 5.0,
}  # fmt: skip


def drawn(rng: random.Random) -> tuple[Any, ...]:
    """One operation of a longer script than hypothesis draws."""
    kind = rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
    a, b, c = (rng.randint(0, 9) for _ in range(3))
    match kind:
        case "create":
            return kind, a, b, c, rng.randint(1, 120)
        case "post":
            return kind, a, b, rng.randint(1, 40)
        case "steer":
            return kind, a, b % 4
        case "cancel":
            return kind, a, b
        case "follow":
            return kind, a, rng.randint(-1, 12)
        case "read":
            return kind, a, b < 5
        case "land":
            return kind, rng.randint(1, 12)
    return kind, a


def test_long_scripts_reach_what_they_are_for() -> None:
    seen: Counter[str] = Counter()
    for seed in range(40):
        rng = random.Random(seed)
        played = asyncio.run(whole_play([drawn(rng) for _ in range(60)]))
        for socket in played.sockets:
            for event in socket.said:
                response = event.get("response") or {}
                details = response.get("incomplete_details") or {}
                seen[event["type"]] += 1
                seen[details.get("reason") or response.get("status") or ""] += 1
                seen[(event.get("error") or {}).get("code") or ""] += 1
            seen["lost"] += socket.gone
        seen["follower"] += sum(bool(fetch.chunks) for *_, fetch in played.follows)
    for kind in (
        "response.steer.accepted",
        "steered",
        "max_output_tokens",
        "completed",
        "cancelled",
        "response_not_found",
        "response_not_active",
        "response_already_completed",
        "previous_response_not_found",
        "follower",
        "lost",
    ):
        assert seen[kind] >= 5, (kind, seen)

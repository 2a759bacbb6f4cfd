"""Token streams of a running server, over websocket and SSE: latency, throughput, goodput; two servers in turns."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from headrace.bench import metrics, scrape, table, workloads
from headrace.bench.capacity import measure_capacity
from headrace.bench.load import Client, Crew, LoadError, Tally, find_target, run
from headrace.bench.probe import Learned, find_model, get_json, learn
from headrace.bench.record import Planned, Run, Transport
from headrace.bench.report import write_html
from headrace.bench.serve_options import given_settings, parser
from headrace.bench.surroundings import surroundings
from headrace.bench.transports import DIALECTS, Manner
from headrace.bench.workloads import WorkloadError, WorkloadSettings

SEEDS_APART = 1000  # between the transports of a server: a prompt sent twice would measure the prefix cache


class Server:
    """One of the servers that are measured."""

    def __init__(self, url: str, key: str, model: str | None, label: str | None) -> None:
        self.url = url
        self.target = find_target(url, key)
        self.entry = find_model(self.target, model)
        self.model: str = self.entry["id"]
        owner = self.entry.get("owned_by")
        self.label = label or (f"{owner} at {self.target.host}" if owner else self.target.host)
        self.flags: Any = None
        try:
            status, told = get_json(self.target, "/server_info")
            self.flags = told if status == 200 else None
        except LoadError:
            pass


class Cell:
    """One server on one transport under one workload, over all repeats."""

    def __init__(
        self,
        server: Server,
        transport: Transport,
        workload: str,
        learned: Learned,
        settings: WorkloadSettings,
        seed: int,
    ) -> None:
        self.server = server
        self.workload = workload
        self.transport: Transport = transport
        self.learned = learned
        self.settings = settings
        self.seed = seed
        self.runs: list[Run] = []
        self.clients: list[Client] = []
        self.stages: dict[str, scrape.Histogram] = {}
        self.refused: str | None = None

    @property
    def name(self) -> str:
        return f"{self.server.label} · {self.workload} · {self.transport}"

    def plan(self, repeat: int) -> list[Planned]:
        return workloads.plan(self.workload, self.settings, self.seed + repeat)

    def measure(self, repeat: int, warmup: bool, crew: Crew, capacity: float | None, title: str) -> None:
        """One run, added to the others. A client that was the bottleneck refuses the whole cell."""
        planned = self.plan(repeat)
        before = {} if warmup else scrape.scrape(self.server.target)
        progress = Progress(planned, title)
        try:
            outcome = run(
                self.server.target,
                self.transport,
                self.learned.manner,
                planned,
                crew,
                warmup=warmup,
                watch=progress,
            )
        finally:
            progress.close()
        self.runs.append(outcome.run)
        if warmup:
            return
        self.clients.append(outcome.client)
        self.refused = self.refused or outcome.client.refusal(capacity)
        if before:
            self.stages = scrape.add(self.stages, scrape.since(before, scrape.scrape(self.server.target)))

    def document(self, bounds: metrics.Bounds, capacity: float | None) -> dict[str, Any]:
        """All that is known of this cell, ready for JSON. A refused one has no numbers but the client's."""
        worst = max(self.clients, key=lambda client: max(client.cpu_share, client.busiest_second))
        document: dict[str, Any] = {
            "label": self.server.label,
            "server": self.server.label,
            "url": self.server.url,
            "model": self.server.model,
            "model_entry": self.server.entry,
            "server_flags": self.server.flags,
            "transport": self.transport,
            "workload": self.workload,
            "settings": msgspec.structs.asdict(self.settings),
            "seeds": [self.seed + repeat for repeat in range(len(self.runs))],
            "manner": msgspec.to_builtins(self.learned.manner),
            "notes": self.learned.notes,
            "client": msgspec.structs.asdict(worst) | {"reads_per_cpu_second": capacity},
            "refused": self.refused,
        }
        if self.refused is None:
            document |= metrics.summarise(self.runs, bounds)
            document["split"] = document["split"] or scrape.told(self.stages)
        return document


class Progress:
    """Shows how far a run is: by time if it lasts a time, else by requests."""

    def __init__(self, planned: Sequence[Planned], title: str) -> None:
        lasting = max((one.until for one in planned), default=0.0)
        self.timed = lasting > 0
        turns = sum(len(one.turns) for one in planned)
        self.line = table.Progress(
            lasting if self.timed else turns, title, unit="s" if self.timed else "requests"
        )

    def __call__(self, tally: Tally) -> None:
        self.line.update(
            min(tally.elapsed_s, self.line.total) if self.timed else tally.ended, tally.events, tally.failed
        )

    def close(self) -> None:
        self.line.close()


def settings_for(
    workload: str, transport: Transport, learned: Learned, given: dict[str, Any]
) -> WorkloadSettings:
    """The workload's settings with what the command line says and what the server's way of counting asks for."""
    chosen = dict(given)
    if "prompt" not in chosen and not chosen.get("file"):
        chosen["prompt"] = (
            "ids" if DIALECTS[transport].carries_ids and chosen.get("turns", 1) == 1 else "words"
        )
    if chosen.get("prompt") == "ids" and not DIALECTS[transport].carries_ids:
        raise WorkloadError(f"{transport} carries text, no token ids: --prompt words or bytes")
    if chosen.get("prompt") == "words":
        chosen.setdefault("tokens_per_word", learned.calibration.tokens_per_word)
        chosen.setdefault("template_tokens", learned.calibration.template_tokens)
    elif chosen.get("prompt") == "bytes":
        chosen.setdefault("template_tokens", learned.calibration.template_tokens)
    return msgspec.structs.replace(workloads.defaults(workload), **chosen)


def say(text: str) -> None:
    print(text, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """`headrace bench serve`. Prints tables and, as the last line, the JSON document. Exit status 1 if a cell could
    not be measured, was refused or is not valid; 2 for a command that makes no sense."""
    reader = parser()
    given = reader.parse_args(argv)
    if given.repeats < 1 or given.workers < 1 or not 1 <= given.lanes <= 32:
        reader.error("--repeats and --workers are at least 1, --lanes 1 to 32")
    transports: list[Transport] = given.transport or (
        ["sse-chat"] if given.against else ["ws-responses", "sse-chat"]
    )
    given.workload = list(dict.fromkeys(given.workload or ["c8_512_256"]))
    crew = Crew(workers=given.workers, cores=given.cores, lanes=given.lanes, patience_s=given.patience)
    try:
        for workload in given.workload:
            workloads.defaults(workload)
        servers = [Server(given.url, given.api_key, given.model, given.label)]
        if given.against:
            key, model = given.against_key, given.against_model
            servers.append(Server(given.against, key, model, given.against_label))
        if len({server.label for server in servers}) < len(servers):
            for place, server in enumerate(servers):
                server.label += f" ({'AB'[place]})"
        cells, failed = prepare(servers, transports, given)
        if not cells:
            raise LoadError("no transport could be measured")
        capacity = {} if given.no_calibration else capacities(cells, crew)
        work(cells, given, crew, capacity)
    except (LoadError, WorkloadError) as error:
        print(f"headrace bench serve: {error}", file=sys.stderr)
        return 1
    document = conclude(cells, failed, given, capacity)
    line = json.dumps(document)
    if given.out:
        Path(given.out).write_text(line + "\n")
    if given.html:
        shown = [result for result in document["results"] if result["refused"] is None]
        if shown:
            write_html(shown, given.html)
            say(f"report: {given.html}")
    print(line)
    sound = all(result["refused"] is None and result["valid"] for result in document["results"])
    return 0 if sound and not failed else 1


def prepare(
    servers: Sequence[Server], transports: Sequence[Transport], given: Any
) -> tuple[list[Cell], list[dict[str, str]]]:
    """Get to know every server on every transport; those that do not speak one are told apart."""
    manner = Manner(
        model="",
        temperature=given.temperature if given.temperature >= 0 else None,
        totals=given.totals,
        fields=given.fields,
    )
    settings = given_settings(given)
    # The same server twice has a warm prefix cache the second time, unless its prompts differ.
    same = len({(server.target.address, server.target.port) for server in servers}) < len(servers)
    cells, failed = [], []
    for number, transport in enumerate(dict.fromkeys(transports)):
        known: list[tuple[int, Server, Learned]] = []
        for place, server in enumerate(servers):
            asked = msgspec.structs.replace(manner, model=server.model)
            try:
                known.append(
                    (place, server, learn(server.target, transport, asked, min(given.patience, 60.0)))
                )
            except LoadError as error:
                say(f"{server.label} · {transport}: not measured: {error}")
                failed.append({"server": server.label, "transport": transport, "error": str(error)})
        for place, server, learned in alike(known):
            for note in learned.notes:
                say(f"{server.label} · {transport}: {note}")
            for nth, workload in enumerate(given.workload):
                apart = number * len(given.workload) + nth
                seed = given.seed + SEEDS_APART * apart + (SEEDS_APART // 2 * place if same else 0)
                made = settings_for(workload, transport, learned, settings)
                cells.append(Cell(server, transport, workload, learned, made, seed))
                cells[-1].plan(0)  # settings that make no sense show now, not after the warm-up
    # Two servers on one transport under one workload are neighbours: their repeats follow each other at once.
    cells.sort(key=lambda cell: (transports.index(cell.transport), given.workload.index(cell.workload)))
    return cells, failed


def alike(known: list[tuple[int, Server, Learned]]) -> list[tuple[int, Server, Learned]]:
    """Servers that are compared have the same work: if one cannot be asked to go on behind the end of its answer,
    neither is the other."""
    if all(learned.manner.ignore_eos for _, _, learned in known):
        return known
    found = []
    for place, server, learned in known:
        if learned.manner.ignore_eos:
            manner = msgspec.structs.replace(learned.manner, ignore_eos=False)
            notes = [*learned.notes, "asked without ignore_eos, as the server that it is compared with"]
            learned = learned._replace(manner=manner, notes=notes)
        found.append((place, server, learned))
    return found


def capacities(cells: Sequence[Cell], crew: Crew) -> dict[Transport, float]:
    """What one worker can take, by transport."""
    found: dict[Transport, float] = {}
    for cell in cells:
        if cell.transport not in found:
            found[cell.transport] = measure_capacity(cell.transport, crew)
            say(f"client: one process takes {found[cell.transport]:,.0f} reads/s on {cell.transport}")
    return found


def work(cells: Sequence[Cell], given: Any, crew: Crew, capacity: dict[Transport, float]) -> None:
    """All runs: every repeat goes over all cells, so that two servers are measured in turns."""
    warmups = 0 if given.no_warmup else 1
    for repeat in range(warmups + given.repeats):
        for cell in cells:
            title = "warm-up" if repeat < warmups else f"repeat {repeat - warmups + 1}/{given.repeats}"
            limit = capacity.get(cell.transport)
            cell.measure(repeat, repeat < warmups, crew, limit, f"{cell.name} · {title}")


def conclude(
    cells: Sequence[Cell], failed: list[dict[str, str]], given: Any, capacity: dict[Transport, float]
) -> dict[str, Any]:
    """Print the tables; return the document."""
    color = sys.stdout.isatty()
    where = surroundings()
    results, comparisons = [], []
    for cell in cells:
        result = where | {"seed": given.seed} | cell.document(given.goodput, capacity.get(cell.transport))
        results.append(result)
        say("")
        if cell.refused is None:
            say(table.render(result, color=color))
        else:
            say(f"{cell.name}: REFUSED: {cell.refused}")
        say(client_line(result["client"]))
    for one, two in itertools.pairwise(results):
        place = {key: one[key] for key in ("workload", "transport")}
        alike = all(two[key] == value for key, value in place.items())
        if alike and one["refused"] is None and two["refused"] is None:
            ratios = metrics.compare(one, two)
            names = [one["label"], two["label"]]
            say("")
            say(" · ".join(place.values()) + "\n" + table.render_comparison(names, ratios, color=color))
            comparisons.append(place | {"base": names[0], "other": names[1], "ratios": ratios})
    return {
        "bench": "serve",
        **where,
        "workloads": given.workload,
        "repeats": given.repeats,
        "results": results,
        "comparisons": comparisons,
        "not_measured": failed,
    }


def client_line(client: dict[str, Any]) -> str:
    """What the client says of itself beside its CPU."""
    told = [
        f"{client['workers']} processes" if client["workers"] > 1 else "1 process",
        f"at most {client['longest_turn_s'] * 1e3:.2f} ms between two polls",
        f"waited for a core {client['starved_share']:.1%} of the time",
    ]
    if client["reads_per_cpu_second"]:
        share = client["reads_per_s"] / client["reads_per_cpu_second"]
        told.append(f"{share:.1%} of its calibrated rate")
    return "              " + ", ".join(told)

"""Serving side by side with infinity: rates, latencies, overload, neighbours, many models. `--help` tells more."""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import cycle, islice
from operator import mul
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console

from bench.loss_floors import floors_table
from bench.machine import OtherPrograms, describe, device, use_physical_cores
from bench.serve_client import Load, Outcome, begin, put
from bench.serve_forward import bare
from bench.serve_models import perturbed_models
from bench.serve_plot import save_plot
from bench.serve_results import ASKED, Overload, Results, Shape, floors, grid_table, variants_table
from bench.serve_servers import MODEL, Server, infinity, likeness
from bench.train_data import demo, texts
from service.demo.progress import Report, progress

PLOT = Path("docs/figures/serve-growth.png")
PARTS = ["grid", "long", "growth", "overload", "neighbours", "models"]
ROUNDS = 3
CLIENTS = [1, 4, 16, 64, 256]
#: The cosine of a model's vectors of one text, in any mode; those of the two models are much further apart.
_SAME = 0.9995
_NO_CACHE = {"LIKENESS_VECTOR_CACHE_BYTES": "0"}

EPILOG = """
What is compared: all-MiniLM-L6-v2 on the standard library's documentation, 12 tokens a text on average, behind
  Likeness    python -m service.serve, both roles, PostgreSQL and Valkey beside it, remembering no vectors
  infinity    its newest version in an environment of its own, torch engine
with base64 for both, and clients in processes of their own on the same machine.

How: both servers run, and one is loaded at a time, in rounds; shown are medians over the rounds, and the median of the
ratios within a round. Leave the machine alone meanwhile: a full run takes about twenty minutes on two cores.

examples:
  python -m bench.serve                      everything; writes docs/figures/serve-growth.png
  python -m bench.serve --quick              does it work here? short, and no floors worth the name; three minutes
  python -m bench.serve --only grid          one of grid, long, growth, overload, neighbours, models
  python -m bench.serve --no-peer            Likeness alone
  python -m bench.serve --soak 30            30 minutes at 80 % load, and nothing else
"""


def main() -> None:
    options = parse(sys.argv[1:])
    threads = use_physical_cores()
    about = describe(torch.device(device()), threads)
    _show("Machine", about)
    results, others = Results(), OtherPrograms()
    console = Console(stderr=True)
    with progress(console, "serving") as report:
        _Bench(results, options, report).run()
    _report(results, others)
    if options.json is not None:
        raw = {"machine": about, **results.json(), "floors": [floor._asdict() for floor in floors(results)]}
        options.json.write_text(json.dumps(raw, indent=1, ensure_ascii=False) + "\n")
    if options.plot is not None and results.growth:
        save_plot(results.growth, options.plot, f"{threads} CPU cores")
        print(f"\nPlot: {options.plot}")
    if options.strict and not all(floor.reached for floor in floors(results)):
        sys.exit("Not every floor was reached.")


class _Bench:
    def __init__(self, results: Results, options: argparse.Namespace, report: Report) -> None:
        self._results = results
        self._options = options
        self._report = report
        self._seconds = 2.0 if options.quick else 6.0
        self._texts = [text for pair in demo().train for text in (pair.anchor, pair.positive)]
        random.Random(0).shuffle(self._texts)

    def run(self) -> None:
        """What was asked for, one part after the other."""
        with tempfile.TemporaryDirectory(prefix="likeness-bench-") as folder:
            if self._options.soak:
                with likeness(Path(folder), **_NO_CACHE) as server:
                    self._soak(server, self._options.soak)
                return
            asked = set(self._options.only)
            if asked & {"grid", "long", "growth"}:
                with self._servers(Path(folder)) as servers:
                    self._run_beside(servers, asked)
            if asked & {"overload", "neighbours"}:
                with likeness(Path(folder) / "alone", **_NO_CACHE) as server:
                    self._run_alone(server, asked)
            if "grid" in asked:
                with likeness(Path(folder) / "remembering") as server:
                    self._variants(server, "remembered vectors")
            if "models" in asked:
                self._models(Path(folder))

    @contextmanager
    def _servers(self, folder: Path) -> Iterator[list[Server]]:
        with ExitStack() as running:
            servers = [running.enter_context(likeness(folder / "plain", **_NO_CACHE))]
            if not self._options.no_peer:
                servers.append(running.enter_context(infinity()))
            self._await_modes(servers[0])
            yield servers

    def _run_beside(self, servers: list[Server], asked: set[str]) -> None:
        if "grid" in asked:
            self._grid(servers)
            self._variants(servers[0], "plain")
            self._bare(servers[0])
        if "long" in asked:
            self._long(servers)
        if "growth" in asked:
            for clients in CLIENTS[:2] if self._options.quick else CLIENTS:
                for server in servers:
                    self._say(f"{clients} clients, {server.name}")
                    self._results.growth[clients, server.name] = put(self._load(server, Shape(clients, 1)))

    def _run_alone(self, server: Server, asked: set[str]) -> None:
        self._await_modes(server)
        if "overload" in asked:
            self._overload(server)
        if "neighbours" in asked:
            self._neighbours(server)

    def _grid(self, servers: list[Server]) -> None:
        for number in range(1 if self._options.quick else ROUNDS):
            for shape in ASKED:
                for server in servers[:: 1 if number % 2 else -1]:
                    self._say(f"{shape}, {server.name}, round {number + 1}")
                    outcome = put(self._load(server, shape))
                    self._results.rounds.setdefault((shape, server.name), []).append(outcome)

    def _variants(self, server: Server, kind: str) -> None:
        self._say(f"4 × 32, {kind}")
        if kind == "plain":
            for encoding in ("base64", "float"):
                self._results.variants[encoding] = put(self._load(server, Shape(4, 32), encoding=encoding))
            return
        few = self._load(server, Shape(4, 32), texts=self._texts[:256])
        put(few)  # from now on they are known
        self._results.variants["base64, all vectors remembered"] = put(few)

    def _bare(self, server: Server) -> None:
        self._say("the bare forward")
        self._results.mode = self._modes(server)["several"]
        self._results.bare = bare(
            MODEL, self._results.mode, self._texts[:4096], batch=32, lanes=2, seconds=2 * self._seconds
        )

    def _long(self, servers: list[Server]) -> None:
        pairs = texts("long", 256).pairs
        long = [f"{pair.anchor} {pair.positive}" for pair in pairs]  # more than the 256 tokens that are read
        for server in servers:
            self._say(f"256 tokens, {server.name}")
            self._results.long.setdefault(server.name, []).append(put(self._load(server, Shape(4, 8), texts=long)))

    def _overload(self, server: Server) -> None:
        self._say("capacity")
        capacity = put(self._load(server, Shape(64, 1))).rate
        seconds = 6.0 if self._options.quick else 60.0
        self._say("an open loop at capacity")
        at_capacity = put(self._load(server, Shape(1, 1), rate=capacity, seconds=seconds / 2))
        before = server.resident_bytes
        self._say("an open loop at twice capacity")
        beyond = put(self._load(server, Shape(1, 1), rate=2 * capacity, seconds=seconds))
        self._results.overload = Overload(capacity, at_capacity, beyond, before, server.resident_bytes)

    def _neighbours(self, server: Server) -> None:
        seconds = 4.0 if self._options.quick else 20.0
        self._say("one text alone")
        self._results.single_alone = put(self._load(server, Shape(1, 1), seconds=seconds))
        self._say("one text beside bulk")
        bulk = begin(self._load(server, Shape(1, 2048), seconds=seconds))
        self._results.single_beside_bulk = put(self._load(server, Shape(1, 1), seconds=seconds))
        bulk()
        lines = dict(line.rsplit(" ", 1) for line in server.get("/metrics").splitlines() if not line.startswith("#"))
        self._results.batch_ms = 1e3 * float(lines["likeness_longest_pass_seconds"])

    def _models(self, folder: Path) -> None:
        """Ten models of MiniLM's size: an alias moves between two of them, and all are asked for at random."""
        names = perturbed_models(folder / "base", 10)
        room = str(4 * 220 * 2**20)
        with likeness(
            folder / "many",
            LIKENESS_BASE_MODELS_DIR=str(folder / "base"),
            LIKENESS_MODEL_MEMORY_BYTES=room,
            **_NO_CACHE,
        ) as server:
            self._swap(server, names[:2])
            self._many(server, names)

    def _swap(self, server: Server, names: Sequence[str]) -> None:
        self._results.swaps = 4 if self._options.quick else 20
        own = {name: _vector(server, name, self._texts[0]) for name in names}
        _alias(server, "current", names[0])
        seconds = 1.5 * self._results.swaps
        loaded = begin(self._load(server, Shape(8, 4), model="current", seconds=seconds))
        for name in islice(cycle(reversed(names)), self._results.swaps):
            self._say(f"the alias goes to {name}")
            _alias(server, "current", name)
            until = time.monotonic() + 1.0
            while time.monotonic() < until:
                # Four texts of one request: all by one model, and by the one that the answer names.
                answer = _ask(server, "current", [self._texts[0]] * 4)
                expected = own[answer["model_version"]]
                cosines = [sum(map(mul, each["embedding"], expected)) for each in answer["data"]]
                self._results.mixed_answers += min(cosines) < _SAME
        self._results.swap = loaded()

    def _many(self, server: Server, names: Sequence[str]) -> None:
        rng = random.Random(0)
        self._say("ten models, room for four")
        total = Outcome(seconds=1.0)
        recent: list[str] = []
        for number in range(12 if self._options.quick else 60):
            name = rng.choice(names)
            began = time.perf_counter()
            try:
                _ask(server, name, [self._texts[number]])
                total.statuses["200"] = total.statuses.get("200", 0) + 1
            except urllib.error.HTTPError as error:
                total.statuses[str(error.code)] = total.statuses.get(str(error.code), 0) + 1
            if name not in recent[-6:]:  # it can't have been in memory
                self._results.cold_ms.append(1e3 * (time.perf_counter() - began))
            recent = [*[each for each in recent if each != name], name]
        self._results.many_models = total

    def _soak(self, server: Server, minutes: int) -> None:
        self._await_modes(server)
        capacity = put(self._load(server, Shape(64, 1))).rate
        put(self._load(server, Shape(1, 1), rate=0.8 * capacity, seconds=120.0))
        self._results.soak.append(server.resident_bytes)
        for minute in range(minutes):
            self._say(f"80 % load, minute {minute + 1} of {minutes}")
            put(self._load(server, Shape(1, 1), rate=0.8 * capacity, seconds=59.0))
            self._results.soak.append(server.resident_bytes)

    def _load(self, server: Server, shape: Shape, **changed: object) -> Load:
        given: dict[str, object] = {
            "port": server.port, "key": server.key, "model": server.model, "path": server.path, "texts": self._texts,
            "clients": shape.clients, "per_request": shape.texts, "seconds": self._seconds,
        }  # fmt: skip
        return Load(**{**given, **changed})  # type: ignore[arg-type]

    def _modes(self, server: Server) -> dict[str, str]:
        return dict(json.loads(server.get(f"/v1/models/{MODEL}"))["mode"] or {})

    def _await_modes(self, server: Server) -> None:
        self._say("modes are chosen")
        deadline = time.monotonic() + 60
        while not self._modes(server).get("chosen") and time.monotonic() < deadline:
            time.sleep(0.2)

    def _say(self, what: str) -> None:
        self._report(0, 0, what)


def _ask(server: Server, model: str, given: Sequence[str]) -> Any:
    return _sent(server, "POST", "/v1/embeddings", {"model": model, "input": list(given)})


def _vector(server: Server, model: str, text: str) -> list[float]:
    answer = _ask(server, model, [text])
    return list(answer["data"][0]["embedding"])


def _alias(server: Server, name: str, model: str) -> None:
    _sent(server, "PUT", f"/v1/aliases/{name}", {"model": model})


def _sent(server: Server, method: str, path: str, body: object) -> Any:
    asked = urllib.request.Request(
        f"http://127.0.0.1:{server.port}{path}",
        json.dumps(body).encode(),
        {"Authorization": f"Bearer {server.key}", "Content-Type": "application/json"},
        method=method,
    )
    with urllib.request.urlopen(asked, timeout=60) as answer:
        return json.load(answer)


def _report(results: Results, others: OtherPrograms) -> None:
    if results.rounds:
        _show("Closed loop, texts of about 12 tokens", grid_table(results))
    if results.bare:
        _show("Without HTTP", [f"{results.mode}, 2 passes of 32 texts at a time: {results.bare:.0f} texts/s"])
    if results.variants:
        _show("What else it depends on", variants_table(results))
    if results.long:
        _show(
            "Texts of 256 tokens, 4 × 8",
            [f"{name}: {found[0].rate:.0f} texts/s" for name, found in results.long.items()],
        )
    if results.growth:
        _show("Growth with clients, one text each", [
            f"{clients:>4} clients, {name}: {each.rate:.0f} texts/s, p50 {each.quantile(0.5):.0f} ms, "
            f"p99 {each.quantile(0.99):.0f} ms" for (clients, name), each in results.growth.items()
        ])  # fmt: skip
    if results.overload:
        over = results.overload
        _show("Open loop", [
            f"capacity: {over.capacity:.0f} texts/s",
            f"at it: p99 {over.at_capacity.quantile(0.99):.0f} ms, {over.at_capacity.statuses}",
            f"twice that: p99 of the accepted {over.beyond.quantile(0.99):.0f} ms, {over.beyond.statuses}",
        ])  # fmt: skip
    if results.cold_ms:
        cold = (
            f"median {median(results.cold_ms):.0f} ms, at most {max(results.cold_ms):.0f} ms, of {len(results.cold_ms)}"
        )
        _show("First answer of a cold model", [cold])
    _show("Other programs while this ran", [others.describe()])
    _show("Floors", floors_table(floors(results), "Likeness"))


def _show(heading: str, lines: Iterable[str]) -> None:
    print("", f"## {heading}", "", *lines, sep="\n", flush=True)


def parse(arguments: list[str]) -> argparse.Namespace:
    """The options of a command line, defaults filled in. Exits on a wrong one."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.serve",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="little of everything; its figures mean little")
    parser.add_argument("--only", choices=PARTS, nargs="+", default=PARTS, help="leave out the other parts")
    parser.add_argument("--no-peer", action="store_true", help="without infinity")
    parser.add_argument("--soak", type=int, metavar="MINUTES", help="so long at 80 %% load, and nothing else")
    parser.add_argument("--plot", type=Path, metavar="PATH", help=f"where a full run draws its figure ({PLOT})")
    parser.add_argument("--no-plot", action="store_true", help="draw none")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the raw figures there")
    parser.add_argument("--strict", action="store_true", help="fail if a floor was not reached, or not measured")
    options = parser.parse_args(arguments)
    if options.no_plot or options.quick:
        options.plot = None
    elif options.plot is None:
        options.plot = PLOT
    return options


if __name__ == "__main__":
    main()

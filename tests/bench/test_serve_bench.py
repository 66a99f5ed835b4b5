"""The clients of the serving benchmark count what a server answers, and its floors say what was measured."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from bench.serve_client import Load, Outcome, put
from bench.serve_results import Overload, Results, Shape, floors, grid_table


@contextmanager
def _server(statuses: list[int]) -> Iterator[tuple[int, list[dict]]]:
    """One that answers with these, again from the first; its port, and what it was asked."""
    asked: list[dict] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append({**body, "key": self.headers["Authorization"]})
            self.send_response(statuses[(len(asked) - 1) % len(statuses)])
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server.server_port, asked
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("rate", [None, 50.0])
def test_clients_count_what_is_answered_and_what_is_refused(rate: float | None) -> None:
    texts = [f"text {number}" for number in range(100)]
    with _server([200, 429]) as (port, asked):
        load = Load(port, "key", "m", texts, clients=3, per_request=2, seconds=0.5, warm_seconds=0.0, rate=rate)
        outcome = put(load)
    assert set(outcome.statuses) == {"200", "429"}
    assert outcome.texts == 2 * outcome.answered == 2 * outcome.statuses["200"]
    assert len(outcome.latencies) == outcome.answered
    assert outcome.broken == 0
    assert asked[0]["key"] == "Bearer key"
    assert ["text 0", "text 1"] in [request["input"] for request in asked]
    assert ["text 2", "text 3"] in [request["input"] for request in asked]


def test_a_server_that_is_not_there_is_told_as_broken() -> None:
    with _server([200]) as (port, _):
        pass
    outcome = put(Load(port, "", "m", ["text"], seconds=0.2, warm_seconds=0.0))
    assert outcome.broken > 0
    assert outcome.answered == 0


def _outcome(rate: float, latency: float = 0.01, **statuses: int) -> Outcome:
    codes = {name.removeprefix("s"): count for name, count in statuses.items()}
    return Outcome(int(rate), int(rate), 1.0, [latency] * 10, codes or {"200": int(rate)})


def test_floors_say_what_was_measured() -> None:
    one = Shape(1, 1)
    results = Results(
        rounds={
            (one, "Likeness"): [_outcome(500, 0.002), _outcome(400, 0.002)],
            (one, "infinity"): [_outcome(100, 0.010), _outcome(100, 0.010)],
        },
        overload=Overload(100.0, _outcome(100, 0.1), _outcome(100, 0.3, s200=90, s429=80, s500=1), 1000, 1020),
        swaps=20,
        swap=_outcome(100),
        mixed_answers=1,
    )
    found = {(floor.where, floor.asked): floor for floor in floors(results)}
    assert (found["1 × 1, rate", "≥ 4× infinity's"].measured, found["1 × 1, rate", "≥ 4× infinity's"].reached) == (
        "4.50×",
        True,
    )
    assert found["1 × 1, p50", "≤ 25 % of infinity's"].measured == "20 %"
    assert found["16 × 1, rate", "≥ 3.5× infinity's"].reached is None
    assert found["twice capacity: p99 of the accepted", "≤ 2× that at capacity"].reached is False
    assert found["twice capacity: answers but 200 and 429, and none", "0"].measured == "1"
    assert found["twice capacity: memory", "flat (< 5 % more)"].reached
    assert found["an alias moved 20 times under load: failed and mixed", "0"].measured == "1"
    assert "4.50×" in grid_table(results)[2]
    json.dumps(results.json())

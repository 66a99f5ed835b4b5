"""A judge that finds nothing wrong must have been able to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.artifacts import difference, leftovers, sha256, torn_models
from tests.chaos.findings import Figure
from tests.chaos.history import ANSWER_SECONDS, Answer
from tests.chaos.judge import on_end, on_what_was_told
from tests.chaos.load import Order, Told, Wish
from tests.chaos.specs import SPECS


def order(*statuses: str, wish: Wish = "succeeded", attempts: tuple[int, ...] = (), **more: Any) -> Order:
    """An order whose client was told these statuses."""
    made = Order("key", SPECS["ntxent"], wish, **more)
    numbers = attempts or (1,) * len(statuses)
    made.told = [
        Told(at, status, number, None) for at, (status, number) in enumerate(zip(statuses, numbers, strict=True))
    ]
    return made


def job(status: str, code: str | None = None) -> dict[str, Any]:
    return {"id": "ftjob-1", "status": status, "error": {"code": code} if code else None}


def test_the_moves_of_a_disturbed_job_are_legal() -> None:
    told = order("validating_files", "queued", "running", "queued", "running", "succeeded", attempts=(0, 1, 1, 2, 2, 2))

    assert list(on_what_was_told(told, job("succeeded"))) == []


@pytest.mark.parametrize(
    ("statuses", "attempts", "now"),
    [
        pytest.param(("succeeded", "running"), (1, 1), "succeeded", id="back from its end"),
        pytest.param(("running", "running"), (2, 1), "succeeded", id="an earlier attempt"),
        pytest.param(("running", "validating_files"), (1, 1), "succeeded", id="back to its files"),
        pytest.param(("running", "failed"), (1, 1), "succeeded", id="another end"),
    ],
)
def test_what_could_not_have_been_is_found(statuses: tuple[str, ...], attempts: tuple[int, ...], now: str) -> None:
    found = list(on_what_was_told(order(*statuses, attempts=attempts), job(now)))

    assert found[0].figure is Figure.MISREPORTED


@pytest.mark.parametrize("seqs", [[1, 3], [1, 1, 2], [2, 3]])
def test_a_stream_with_gaps_or_repeats_is_found(seqs: list[int]) -> None:
    assert list(on_what_was_told(order("succeeded", seqs=seqs), job("succeeded")))
    assert not list(on_what_was_told(order("succeeded", seqs=[1, 2, 3]), job("succeeded")))


@pytest.mark.parametrize(
    ("wish", "codes", "end", "fine"),
    [
        ("succeeded", (), job("succeeded"), True),
        ("succeeded", (), job("failed", "worker_lost"), False),
        ("succeeded", ("worker_lost",), job("failed", "worker_lost"), True),
        ("succeeded", (), job("cancelled"), False),
        ("cancelled", (), job("succeeded"), True),
        ("failed", ("out_of_memory",), job("succeeded"), False),
        ("failed", ("out_of_memory",), job("failed", "training_crashed"), False),
        ("failed", ("out_of_memory",), job("failed", "out_of_memory"), True),
    ],
)
def test_only_ends_that_somebody_wanted_or_a_fault_explains_are_fine(
    wish: Wish, codes: tuple[str, ...], end: dict[str, Any], fine: bool
) -> None:
    assert (not list(on_end(order(wish=wish, codes=frozenset(codes)), end))) is fine


@pytest.mark.parametrize(
    ("status", "seconds", "retry_after", "fine"),
    [
        (200, 0.1, None, True),
        (404, 0.1, None, True),
        (503, 0.1, "2", True),
        (503, 0.1, None, False),
        (500, 0.1, None, False),
        (200, ANSWER_SECONDS * 2, None, False),
        (None, 0.1, None, True),  # cut off: nobody knows
        (None, ANSWER_SECONDS * 2, None, False),
    ],
)
def test_answers_are_in_time_and_failures_say_when_to_come_back(
    status: int | None, seconds: float, retry_after: str | None, fine: bool
) -> None:
    answer = Answer(0, seconds, "client", "http://x", "GET", "/", status, "service_unavailable", retry_after)

    assert (answer.misdeed() is None) is fine


# --- files ---


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "models" / "ftjob-1-1"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    sums = {"model.safetensors": sha256(folder / "model.safetensors")}
    (folder / "manifest.json").write_text(json.dumps({"sha256": sums}))
    return folder


def test_a_whole_model_is_not_torn(model: Path, tmp_path: Path) -> None:
    assert list(torn_models(tmp_path, [{"artifact": "ftjob-1-1"}])) == []


@pytest.mark.parametrize("damage", ["changed", "missing", "more", "no manifest", "gone"])
def test_every_damage_to_a_model_is_seen(model: Path, damage: str) -> None:
    weights = model / "model.safetensors"
    {
        "changed": lambda: weights.write_bytes(b"weighty"),
        "missing": weights.unlink,
        "more": (model / "stray").touch,
        "no manifest": (model / "manifest.json").unlink,
        "gone": lambda: model.rename(model.with_name("elsewhere")),
    }[damage]()

    assert difference(model)


def test_what_belongs_to_nothing_is_left_over(model: Path, tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / "ftjob-2").mkdir(parents=True)
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "half").write_bytes(b"12345")

    found = dict(leftovers(tmp_path, files=set(), models={"ftjob-1-1"}, jobs=set()))

    assert {path.name: size for path, size in found.items()} == {"ftjob-2": 1, "half": 5}
    assert not dict(leftovers(tmp_path, files=set(), models={"ftjob-1-1"}, jobs={"ftjob-2"})).keys() - {
        tmp_path / "unfinished" / "half"
    }

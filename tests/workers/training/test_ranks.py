"""Two processes train what one trains; see `rank_scenarios.py`."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from encoders.text import TextEncoder
from tests.encoders.tiny_encoder import write_json
from tests.workers.training.rank_scenarios import SCENARIOS, TRAININGS, run_all
from workers.data.preparation import prepare
from workers.data.prepared import Prepared
from workers.data.row import Row
from workers.training.batch_loss import BatchLoss
from workers.training.batches import Batches
from workers.training.config import LossConfig
from workers.training.mining import extended
from workers.training.ranks import Ranks
from workers.training.trainer import _step_seed

COUNT = 2
PATIENCE_SECONDS = 120


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path, colours: list[Row]) -> Path:
    """Encoders and data of all scenarios."""
    folder = tmp_path_factory.mktemp("ranks")
    shutil.copytree(tiny_folder, folder / "dropout")
    shutil.copytree(tiny_folder, folder / "plain")
    config = json.loads((tiny_folder / "config.json").read_text())
    without = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    write_json(folder / "plain" / "config.json", {**config, **without})
    tokenizer = TextEncoder.load(tiny_folder).tokenizer
    vectors = np.random.default_rng(0).normal(size=(12, 8)).tolist()
    kinds: dict[str, Sequence[Row]] = {
        "pairs": colours,
        "texts": [Row("texts", row.inputs[:1]) for row in colours],
        "triplets": [Row("triplets", (*row.inputs, f"no {row.inputs[0]}")) for row in colours],
        "labels": [Row("labels", (text,), row.inputs[0]) for row in colours for text in row.inputs],
        "vectors": [Row("vectors", (vector,)) for vector in vectors],
    }
    for kind, rows in kinds.items():
        prepare(iter(rows), folder / "data" / kind, tokenizer=tokenizer, limit=48)
    return folder


@pytest.fixture(scope="module")
def found(folder: Path) -> list[dict[str, Any]]:
    """What each rank found, by scenario. All scenarios in one start: it costs seconds."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=60))
    context = mp.spawn(run_all, args=(COUNT, store.port, str(folder)), nprocs=COUNT, join=False)
    deadline = time.monotonic() + PATIENCE_SECONDS
    try:
        while not context.join(timeout=max(deadline - time.monotonic(), 0)):
            assert time.monotonic() < deadline, "the processes wait for one another"
    finally:
        for process in context.processes:
            process.kill()
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(COUNT)]


def alone(folder: Path, name: str) -> dict[str, Any]:
    return SCENARIOS[name](folder, Ranks())


# One training


@pytest.mark.parametrize("name", TRAININGS)
def test_two_processes_take_the_steps_of_one(folder: Path, found: list[dict[str, Any]], name: str) -> None:
    wanted, seen = alone(folder, name), found[0][name]
    assert len(seen["reports"]) == len(wanted["reports"]) >= 3
    for one, other in zip(seen["reports"], wanted["reports"], strict=True):
        assert measured(one) == pytest.approx(measured(other), rel=1e-3, abs=1e-5)
    assert seen["weights"].keys() == wanted["weights"].keys()
    for weight, tensor in wanted["weights"].items():
        # Whatever a key's bias is, softmax takes it away again: its gradient is rounding, which AdamW makes a step of.
        if not weight.endswith("key.bias"):
            assert torch.allclose(seen["weights"][weight], tensor, rtol=1e-3, atol=2e-5), weight


def measured(report: Any) -> dict[str, Any]:
    """What doesn't depend on the time."""
    left_out = {"seconds", "pairs_per_second", "tokens_per_second"}
    return {name: value for name, value in vars(report).items() if name not in left_out}


@pytest.mark.parametrize("name", [*TRAININGS, "dropout", "interrupted"])
def test_all_ranks_end_at_the_same_bytes(found: list[dict[str, Any]], name: str) -> None:
    first, other = found[0][name]["weights"], found[1][name]
    assert first.keys() == other.keys()
    assert all(torch.equal(first[weight], other[weight]) for weight in first)


def test_an_interrupted_run_goes_on_to_the_same_bytes(found: list[dict[str, Any]]) -> None:
    whole, interrupted = found[0]["dropout"], found[0]["interrupted"]
    assert interrupted["step"] == len(whole["reports"]) == 6
    assert all(torch.equal(interrupted["weights"][name], tensor) for name, tensor in whole["weights"].items())


def test_ranks_draw_different_dropout(folder: Path, found: list[dict[str, Any]]) -> None:
    assert len({_step_seed(7, 3, rank) for rank in range(4)}) == 4
    losses = [[report.loss for report in each["reports"]] for each in (found[0]["dropout"], alone(folder, "dropout"))]
    assert losses[0] != pytest.approx(losses[1], rel=1e-3)


# What goes wrong


def test_a_loss_that_is_not_finite_ends_the_run_in_all_ranks(folder: Path, found: list[dict[str, Any]]) -> None:
    message = found[0]["not finite"]["error"]
    assert "NaN or infinite at step" in message
    assert message == alone(folder, "not finite")["error"]


def test_where_memory_runs_out_for_one_rank_all_halve_their_micro_batches(
    folder: Path, found: list[dict[str, Any]]
) -> None:
    seen = found[0]["memory runs out for one"]
    assert [notice.partition(" is ")[2].partition(" from")[0] for notice in seen["notices"]] == ["3", "1"]
    wanted = alone(folder, "memory runs out for one")
    assert wanted["notices"] == []
    losses = [[report.loss for report in each["reports"]] for each in (seen, wanted)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_lack_of_memory_for_a_single_row_ends_the_run_with_its_remedies(found: list[dict[str, Any]]) -> None:
    assert "Step 1 needed more memory than there is" in found[0]["memory runs out for good"]["error"]


def test_what_rank_0_alone_gives_up_ends_for_all(found: list[dict[str, Any]]) -> None:
    first, other = found[0]["ended"], found[1]["ended"]
    assert first["step"] == 2
    assert all(torch.equal(other[name], tensor) for name, tensor in first["weights"].items())


# Shares


@pytest.mark.parametrize("count", [2, 3, 5, 40])
@pytest.mark.parametrize("kind", ["pairs", "texts", "triplets", "labels"])
def test_shares_hold_every_row_once_and_whole(folder: Path, kind: str, count: int) -> None:
    data = Prepared.open(folder / "data" / kind)
    batch = next(Batches(data, batch_size=11, seed=0).epoch(0))
    shares = [of(rank, count).share(batch) for rank in range(count)]
    for name in ("items", "contents", "labels", "asks"):
        joined = np.concatenate([getattr(share, name) for share in shares])
        assert np.array_equal(joined, getattr(batch, name)), name
    assert sum(share.rows for share in shares) == batch.rows
    assert max(share.rows for share in shares) == of(0, count).largest_share(batch.rows)
    assert all(share.asks[0] for share in shares if share.rows), "what is alike stays together"


def test_mined_negatives_are_shared_out_evenly(folder: Path) -> None:
    data = Prepared.open(folder / "data" / "pairs")
    batch = next(Batches(data, batch_size=6, seed=0).epoch(0))
    others = np.setdiff1d(data.row_starts[:-1] + 1, batch.items)
    mined = extended(batch, np.resize(others, (len(data), 1)), data)
    shares = [of(rank, 3).share(mined) for rank in range(3)]
    assert mined.mined >= 3
    assert np.ptp([len(share.items) for share in shares]) <= 1
    assert np.ptp([share.mined for share in shares]) <= 1
    assert sorted(np.concatenate([share.items for share in shares])) == sorted(mined.items)


def of(rank: int, count: int) -> Ranks:
    ranks = Ranks()
    ranks.rank, ranks.count = rank, count
    return ranks


def test_a_memory_is_refused_by_its_name() -> None:
    with pytest.raises(ValueError, match="memory_size must be 0"):
        BatchLoss(replace(LossConfig(temperature=0.1), memory_size=8), dimension=4, shared=True)

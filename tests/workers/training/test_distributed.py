from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from tests.workers.training.processes import (
    DISAGREEMENTS,
    LOSSES,
    PATIENCE,
    SIZES,
    TOWER_DISAGREEMENTS,
    WHOLE,
    cached_statistics,
    own_gradients,
    own_statistics,
    rows_of,
    run_all,
    train,
)
from workers.training.distributed import DistributedLoss, average_gradients
from workers.training.losses import NTXentLoss

EXACT = {"rtol": 1e-10, "atol": 1e-13}


@pytest.fixture(scope="module", params=[2, 3], ids=["2 processes", "3 processes"])
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each process found, by rank. All scenarios in one start: it costs seconds."""
    folder = tmp_path_factory.mktemp("processes")
    context = mp.spawn(run_all, args=(request.param, str(folder)), nprocs=request.param, join=False)
    deadline = time.monotonic() + 2 * PATIENCE.total_seconds()
    try:
        while not context.join(timeout=max(deadline - time.monotonic(), 0)):
            assert time.monotonic() < deadline, "the processes wait for one another"
    finally:
        for process in context.processes:
            process.kill()
    return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(request.param)]


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    """A group of one process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def assert_close(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name in wanted:
        assert torch.allclose(found[name], wanted[name], **EXACT), name


def approximately(statistics: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value if value is None else pytest.approx(value, rel=1e-12, abs=1e-14)
        for name, value in statistics.items()
    }


def joined(found: list[dict[str, Any]], scenario: str) -> dict[str, Tensor]:
    """What all processes found: rows behind each other, everything else equal in all of them."""
    parts = [process[scenario] for process in found]
    whole = {}
    for name, first in parts[0].items():
        if name in ("embeddings", "references"):
            whole[name] = torch.cat([part[name] for part in parts])
        else:
            assert all(torch.equal(part[name], first) for part in parts), name
            whole[name] = first
    return whole


# The whole batch's loss


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("kind", LOSSES)
def test_loss_and_gradient_are_those_of_one_process(found, kind, sizes):
    wanted = own_gradients(WHOLE, kind, SIZES[sizes][: len(found)])
    assert sizes == "all empty" or wanted["embeddings"].norm() > 0.1
    assert_close(joined(found, f"{kind}, {sizes}"), wanted)


@pytest.mark.parametrize("kind", LOSSES)
def test_references_are_gathered_too(found, kind):
    wanted = own_gradients(WHOLE, kind, SIZES["uneven"][: len(found)], towers=True)
    assert wanted["references"].norm() > 0.1
    assert_close(joined(found, f"{kind}, towers"), wanted)


@pytest.mark.parametrize("towers", [False, True])
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("kind", LOSSES)
def test_statistics_are_those_of_one_process(found, kind, sizes, towers):
    wanted = own_statistics(WHOLE, kind, SIZES[sizes][: len(found)], towers=towers)
    parts = [process[f"{kind}, {sizes}, towers {towers}, told"] for process in found]
    gradient = torch.cat([part.pop("embeddings") for part in parts])
    assert torch.allclose(gradient, wanted.pop("embeddings"), **EXACT)
    assert all(part == parts[0] for part in parts)
    assert parts[0] == approximately(wanted)
    assert wanted["rows_without_direction"] == (sizes != "all empty") * (1 + towers)


def test_statistics_pass_through_gradient_caching(found):
    wanted = cached_statistics(WHOLE, SIZES["one empty"][: len(found)])
    parts = [process["cached statistics"] for process in found]
    weight = wanted.pop("weight")
    assert all(torch.allclose(part.pop("weight"), weight, **EXACT) for part in parts)
    assert all(part == approximately(wanted) for part in parts)


@pytest.mark.parametrize("kind", ["ntxent", "ntxent by class", "supcon"])
def test_ten_steps_end_at_the_parameters_of_one_process(found, kind):
    assert_close(joined(found, f"{kind}, trained"), train(WHOLE, LOSSES[kind](), len(found)))


def test_so_do_they_with_gradient_caching_and_different_numbers_of_micro_batches(found):
    assert_close(joined(found, "cached"), train(WHOLE, LOSSES["ntxent by class"](), len(found)))


def test_each_process_computes_its_own_rows_of_the_loss(found):
    sizes = SIZES["uneven"][: len(found)]
    assert [process["rows seen"] for process in found] == [[own, sum(sizes)] for own in sizes]


def test_half_precision_stays_within_its_rounding(found):
    embeddings, labels, _ = rows_of(1, WHOLE, SIZES["uneven"][: len(found)])
    rounded = embeddings.bfloat16().double().requires_grad_()
    value = NTXentLoss(0.2)(rounded, labels)
    value.backward()
    gradient = torch.cat([process["half precision"]["gradient"] for process in found]).double()
    assert found[0]["half precision"]["value"].item() == pytest.approx(value.item(), rel=1e-5)
    assert (gradient - rounded.grad).norm() < 0.01 * rounded.grad.norm()


# Nobody waits


def test_a_process_whose_own_part_is_constant_still_gives_its_rows_their_gradient_as_references(found):
    assert all(process["constant"].any() for process in found)


@pytest.mark.parametrize("name", [*DISAGREEMENTS, *TOWER_DISAGREEMENTS])
def test_what_one_process_gets_wrong_is_an_error_in_all(found, name):
    errors = [process["errors"][name] for process in found]
    kind = "NonFiniteEmbeddingsError" if "NaN" in name else "ProcessesDisagreeError"
    assert all(error.startswith(kind) and name in error for error in errors), errors


def test_rows_with_nan_have_the_numbers_of_the_whole_batch(found):
    first, rows = SIZES["uneven"][:2]
    told = [process["errors"]["NaN"] for process in found]
    listed = ", ".join(str(first + row) for row in range(rows))
    assert all(f"in row {listed}." in error for error in told)


# One process


def losses_and_gradients() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    loss, outcomes = NTXentLoss(0.2), []
    for form in (loss, DistributedLoss(loss)):
        embeddings, labels, ids = rows_of(1, WHOLE, (9,))
        value = form(embeddings.requires_grad_(), labels, content_ids=ids)
        value.backward()
        outcomes.append((value, embeddings.grad))
    return outcomes[0], outcomes[1]


def assert_plain() -> None:
    plain, shared = losses_and_gradients()
    assert torch.equal(plain[0], shared[0])
    assert torch.equal(plain[1], shared[1])


def test_without_torch_distributed_it_is_the_plain_loss():
    assert not dist.is_initialized()
    assert_plain()


def test_in_a_group_of_one_it_is_the_plain_loss(alone):
    assert_plain()


def test_one_process_has_its_gradients_as_they_are():
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.grad = torch.tensor([1.0, 2.0])
    average_gradients([parameter])
    assert parameter.grad.tolist() == [1.0, 2.0]

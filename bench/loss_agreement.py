"""Whether all implementations compute the same thing, without which their times could not be compared.

Letters: N rows, D their width, K rows of each label, S rows of a sample.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.loss_contestants import (
    CONTESTANTS,
    TEMPERATURE,
    Case,
    Name,
    Outcome,
    autograd_ntxent,
    batch,
    outcome,
    reference_supcon,
)

# Relative differences allowed: of the value, and of the gradient's norm.
TOLERANCES = {"float64": (1e-10, 1e-8), "float32": (1e-5, 1e-4), "bfloat16": (1e-3, 1e-2)}
_ROWS_AT_A_TIME = 512
_SAMPLE = 256


class Sampled(NamedTuple):
    """A reference: the loss, and its gradient in some rows."""

    value: Tensor  # scalar
    rows: Tensor  # (S,) their numbers
    gradient: Tensor  # (S, D)


class Agreement(NamedTuple):
    """How far implementations are from a reference on one batch; the largest of each, relative."""

    what: str
    names: list[Name]
    value: float
    gradient: float
    agrees: bool

    def __str__(self) -> str:
        titles = ", ".join(CONTESTANTS[name].title for name in self.names)
        verdict = "agree" if self.agrees else "DO NOT AGREE"
        return f"{self.what}: {titles} {verdict} (value within {self.value:.0e}, gradient within {self.gradient:.0e})"


def agree_when_small(device: torch.device) -> list[Agreement]:
    """All of them on 48 rows in float64, against plain autograd; so is the reference of large batches."""
    found = []
    for per_label in (2, 8):
        embeddings, labels = batch(48, 16, per_label, "float64", device)
        cases = {
            Case(name, 48, 16, per_label, "float64"): outcome(contestant.make(), embeddings, labels)
            for name, contestant in CONTESTANTS.items()
        }
        found += agree(cases, embeddings, labels)
        plain, rows = outcome(autograd_ntxent, embeddings, labels), by_rows(embeddings, labels)
        what = f"N = 48, D = 16, {per_label} per label, float64, reference by rows"
        found.append(_compare(what, "float64", {"autograd": plain}, rows))
    return found


def agree(outcomes: Mapping[Case, Outcome], embeddings: Tensor, labels: Tensor) -> list[Agreement]:
    """Outcomes on one batch against plain autograd, or against `by_rows` if that is not among them."""
    (_, rows, width, per_label, dtype), *_ = outcomes
    what = f"N = {rows}, D = {width}, {per_label} per label, {dtype}"
    found: list[Agreement] = []
    ntxent = {case.name: seen for case, seen in outcomes.items() if per_label == 2 or _is_ntxent(case.name)}
    reference: Sampled | None = None
    if "autograd" in ntxent:
        reference = _all_rows(ntxent["autograd"])
    elif ntxent:
        reference = by_rows(embeddings, labels)
    if reference is not None:
        found.append(_compare(what, dtype, ntxent, reference))
    supcon = {case.name: seen for case, seen in outcomes.items() if case.name not in ntxent}
    if supcon:
        ours = _all_rows(outcome(reference_supcon(), embeddings, labels))
        found.append(_compare(f"{what}, against our SupConLoss", dtype, supcon, ours))
    return found


def by_rows(embeddings: Tensor, labels: Tensor) -> Sampled:
    """NT-Xent and its gradient in a sample of rows, from the closed form, in O(N·D) memory: for any N.

    embeddings (N, D), labels (N,), each as often as any other. With L_i = log Σ_n exp(s_in) over rows of other labels
    and σ_ip = sigmoid(L_i − s_ip) over the M pairs of one label, ∂/∂s_in = exp(s_in − L_i) Σ_p σ_ip / M and
    ∂/∂s_ip = −σ_ip / M; z_i stands in s_ij and in s_ji. It shares no line with the losses measured.
    """
    n = len(labels)
    each = torch.arange(n, device=labels.device)
    with torch.no_grad():
        wide = embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))
        z = F.normalize(wide, dim=1)
        alike = labels.argsort(stable=True).view(int(labels.max()) + 1, -1)[labels]  # (N, K)
        positives = alike[alike != each[:, None]].view(n, -1)  # (N, K − 1)
        log_negatives = torch.cat(
            [
                (z[some] @ z.T / TEMPERATURE).scatter_(1, alike[some], -torch.inf).logsumexp(dim=1)
                for some in torch.split(each, _ROWS_AT_A_TIME)
            ]
        )
        gaps = log_negatives[:, None] - torch.stack([(z * z[p]).sum(dim=1) for p in positives.T], dim=1) / TEMPERATURE
        pulls = torch.sigmoid(gaps)  # (N, K − 1)
        pushes = pulls.sum(dim=1)

        rows = each[:: max(1, n // _SAMPLE)]
        logits = z[rows] @ z.T / TEMPERATURE  # (S, N)
        coefficients = pushes[rows, None] * (logits - log_negatives[rows, None]).exp()
        coefficients += pushes * (logits - log_negatives).exp()
        of_pairs = torch.sigmoid(log_negatives[positives[rows]] - logits.gather(1, positives[rows]))
        coefficients.scatter_(1, alike[rows], 0).scatter_(1, positives[rows], -(pulls[rows] + of_pairs))
        dz = coefficients @ z / (TEMPERATURE * gaps.numel())
        along = (dz * z[rows]).sum(dim=1, keepdim=True)
        gradient = (dz - along * z[rows]) / wide[rows].norm(dim=1, keepdim=True)
    return Sampled(F.softplus(gaps.double()).mean(), rows, gradient)


def _compare(what: str, dtype: str, outcomes: Mapping[Name, Outcome], reference: Sampled) -> Agreement:
    # PML's reductions of a bfloat16 input are themselves in bfloat16: shown nowhere as agreeing, and no failure.
    judged = {name: seen for name, seen in outcomes.items() if dtype != "bfloat16" or not name.startswith("pml")}
    values = [_distance(seen.value, reference.value) for seen in judged.values()]
    gradients = [_distance(seen.gradient[reference.rows], reference.gradient) for seen in judged.values()]
    value_tolerance, gradient_tolerance = TOLERANCES[dtype]
    value, gradient = max(values, default=0.0), max(gradients, default=0.0)
    # Written so that NaN does not agree with anything.
    agrees = all(v <= value_tolerance for v in values) and all(g <= gradient_tolerance for g in gradients)
    return Agreement(what, list(judged), value, gradient, agrees)


def _all_rows(seen: Outcome) -> Sampled:
    return Sampled(seen.value, torch.arange(len(seen.gradient), device=seen.gradient.device), seen.gradient)


def _is_ntxent(name: Name) -> bool:
    return CONTESTANTS[name].objective == "ntxent"


def _distance(seen: Tensor, expected: Tensor) -> float:
    return float((seen.double() - expected.double()).norm() / expected.double().norm())

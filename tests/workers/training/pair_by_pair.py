"""The losses as their definition reads, one pair after the other: what the fast ones are held to.

Nothing here is shared with them: no masks, no matrices, no weights; plain loops over lists of indices, in float64.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    embeddings: Tensor
    labels: Tensor
    ref_emb: Tensor | None = None
    ref_labels: Tensor | None = None
    content_ids: Tensor | None = None
    ref_content_ids: Tensor | None = None
    anchor_offset: int | None = None

    @property
    def leaves(self) -> list[Tensor]:
        return [leaf for leaf in (self.embeddings, self.ref_emb) if leaf is not None]

    def turned(self) -> Batch:
        """References ask embeddings."""
        return Batch(
            self.ref_emb, self.ref_labels, self.embeddings, self.labels, self.ref_content_ids, self.content_ids
        )

    def positives(self, i: int) -> list[int]:
        columns = self.labels if self.ref_labels is None else self.ref_labels
        alike = [j for j in range(len(columns)) if columns[j] == self.labels[i]]
        offset = 0 if self.ref_labels is None else self.anchor_offset
        return [j for j in alike if offset is None or j != offset + i]

    def negatives(self, i: int) -> list[int]:
        columns = self.labels if self.ref_labels is None else self.ref_labels
        contents = self.content_ids if self.ref_labels is None else self.ref_content_ids
        others = [j for j in range(len(columns)) if columns[j] != self.labels[i]]
        return [j for j in others if contents is None or contents[j] != self.content_ids[i]]

    def cosine(self, i: int, j: int) -> Tensor:
        other = (self.embeddings if self.ref_emb is None else self.ref_emb)[j].double()
        row = self.embeddings[i].double()
        return (row / row.norm()) @ (other / other.norm())


def random_batch(
    seed: int,
    n: int = 12,
    d: int = 5,
    labels: int = 4,
    *,
    references: int | None = None,
    contents: int | None = None,
) -> Batch:
    """Rows of the normal distribution with labels below `labels` and, on demand, references and contents."""
    generator = torch.Generator().manual_seed(seed)

    def rows(count: int) -> Tensor:
        return torch.randn(count, d, generator=generator, dtype=torch.float64).requires_grad_()

    def numbers(count: int, below: int) -> Tensor:
        return torch.randint(below, (count,), generator=generator)

    with_references = references is not None
    return Batch(
        rows(n),
        numbers(n, labels),
        rows(references) if with_references else None,
        numbers(references, labels) if with_references else None,
        numbers(n, contents) if contents else None,
        numbers(references, contents) if contents and with_references else None,
    )


def pair_terms(batch: Batch, temperature: float, objective: str) -> dict[tuple[int, int], Tensor]:
    terms = {}
    for i in range(len(batch.embeddings)):
        positives, negatives = batch.positives(i), batch.negatives(i)
        for p in positives:
            rivals = [p, *negatives] if objective == "ntxent" else positives + negatives
            logits = torch.stack([batch.cosine(i, j) / temperature for j in rivals])
            terms[i, p] = torch.logsumexp(logits, dim=0) - batch.cosine(i, p) / temperature
    return terms


def mean(values: Iterable[Tensor]) -> Tensor:
    listed = list(values)
    return sum(listed[1:], start=listed[0]) / len(listed)


def one_direction(batch: Batch, temperature: float, objective: str, reduction: str) -> Tensor:
    terms = pair_terms(batch, temperature, objective)
    if not terms:
        return sum(leaf.sum() * 0 for leaf in batch.leaves)
    if reduction == "pair":
        return mean(terms.values())
    by_name: dict[int, list[Tensor]] = {}
    for (i, _), term in terms.items():
        by_name.setdefault(i if reduction == "anchor" else int(batch.labels[i]), []).append(term)
    return mean(mean(own) for own in by_name.values())


def definition(batch: Batch, temperature: float, objective: str, reduction: str, *, symmetric: bool = False) -> Tensor:
    value = one_direction(batch, temperature, objective, reduction)
    if symmetric and batch.ref_emb is not None:
        return (value + one_direction(batch.turned(), temperature, objective, reduction)) / 2
    return value

"""Training rows in memory: pairs and labelled texts, each text once, rows as indices."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from workers.data import validation
from workers.data.row import Row
from workers.data.validation import DatasetError, FileReport, validate

__all__ = ["Dataset", "DatasetError", "FileReport", "LabelDataset", "PairDataset", "load", "validate"]


@dataclass(frozen=True, eq=False)
class PairDataset:
    """Rows of anchor and positive. Row k is texts[anchors[k]] and texts[positives[k]]."""

    texts: list[str]  # each text once
    anchors: array[int]  # 32-bit indices into texts
    positives: array[int]

    def __len__(self) -> int:
        return len(self.anchors)


@dataclass(frozen=True, eq=False)
class LabelDataset:
    """Labelled texts. Row k is texts[items[k]] with the label label_names[labels[k]]; no row occurs twice."""

    texts: list[str]  # each text once
    items: array[int]  # 32-bit indices into texts
    labels: array[int]  # 32-bit indices into label_names
    label_names: list[str]

    def __len__(self) -> int:
        return len(self.items)


Dataset = PairDataset | LabelDataset


def load(path: Path) -> Dataset:
    """Read a validated file into memory, each text once.

    Labels 1 and "1" are one label. Repeated rows of a label file count once; repeated pairs are kept.

    Raises DatasetError for a row that validation would refuse, a file without rows or of a format that training
    does not take; OSError.
    """
    rows = validation.rows(path)
    first = next(rows, None)
    if first is None:
        raise DatasetError("The file holds no rows.")
    if first.format not in ("pairs", "labels"):
        raise DatasetError(f"Rows of the format '{first.format}' cannot be trained on.")
    collect = _collect_pairs if first.format == "pairs" else _collect_labels
    return collect(chain([first], rows))


class _Table:
    """Numbers strings in the order in which they first occur."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def number(self, text: str) -> int:
        return self._numbers.setdefault(text, len(self._numbers))

    def entries(self) -> list[str]:
        return list(self._numbers)


def _collect_pairs(rows: Iterator[Row]) -> PairDataset:
    texts, anchors, positives = _Table(), array("i"), array("i")
    for row in rows:
        anchors.append(texts.number(str(row.inputs[0])))
        positives.append(texts.number(str(row.inputs[1])))
    return PairDataset(texts.entries(), anchors, positives)


def _collect_labels(rows: Iterator[Row]) -> LabelDataset:
    texts, names, items, labels = _Table(), _Table(), array("i"), array("i")
    known: set[tuple[int, int]] = set()
    for row in rows:
        item = (texts.number(str(row.inputs[0])), names.number(str(row.label)))
        if item not in known:
            known.add(item)
            items.append(item[0])
            labels.append(item[1])
    return LabelDataset(texts.entries(), items, labels, names.entries())

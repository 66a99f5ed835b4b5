from __future__ import annotations

import json
from pathlib import Path

import pytest

from workers.training.datasets import DatasetError, LabelDataset, PairDataset, load


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "rows.jsonl"


def write(path: Path, *rows: dict) -> None:
    path.write_text("\n".join(map(json.dumps, rows)))


def test_load_pairs_keeps_each_text_once(path):
    write(path, {"anchor": "q1", "positive": "yes"}, {"anchor": "q2", "positive": "yes"})
    dataset = load(path)
    assert isinstance(dataset, PairDataset)
    assert dataset.texts == ["q1", "yes", "q2"]
    assert (list(dataset.anchors), list(dataset.positives), len(dataset)) == ([0, 2], [1, 1], 2)


def test_load_labels_numbers_labels_and_drops_repeated_rows(path):
    labelled = [("a", "x"), ("b", "x"), ("c", 7), ("a", "x"), ("a", "7")]
    write(path, *[{"text": text, "label": label} for text, label in labelled])
    dataset = load(path)
    assert isinstance(dataset, LabelDataset)
    assert dataset.texts == ["a", "b", "c"]
    assert dataset.label_names == ["x", "7"]
    assert (list(dataset.items), list(dataset.labels), len(dataset)) == ([0, 1, 2, 0], [0, 0, 1, 1], 4)


def test_load_refuses_a_bad_row_by_its_number(path):
    write(path, {"anchor": "a", "positive": "b"}, {"text": "a", "label": "x"})
    with pytest.raises(DatasetError, match="Row 2: has 'text' and 'label'"):
        load(path)


def test_load_refuses_an_empty_file(path):
    write(path)
    with pytest.raises(DatasetError, match="no rows"):
        load(path)


def test_load_refuses_formats_that_training_does_not_take(path):
    write(path, {"views": ["a", "b"]})
    with pytest.raises(DatasetError, match="'views'"):
        load(path)

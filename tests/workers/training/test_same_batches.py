"""One dataset trains alike, whatever file it comes in: form, compression, names of columns."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle, islice, pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from encoders.text import TextEncoder
from tests.workers.data import rows as words
from tests.workers.data.forms import COMPRESSIONS, FORMS
from tests.workers.training.conftest import COLOURS
from workers.data import validation
from workers.data.formats import ReadOptions
from workers.data.preparation import Tokenizer, prepare
from workers.data.prepared import Prepared
from workers.training.config import TrainingConfig
from workers.training.mixing import Mixture
from workers.training.trainer import Trainer

Record = dict[str, Any]

# An anchor with two positives, one text in two rows, and what delimiters have to quote.
PAIRS = [(f"{colour} paint, “ü”\n", f'more "{COLOURS[n // 2 * 2]}"; {n // 2}') for n, colour in enumerate(COLOURS)]
NAMES = [
    ("anchor", "positive"),
    ("query", "pos"),
    ("query", "positive"),
    ("sentence1", "sentence2"),
    ("question", "answer"),
]
TOLD = ("frage", "antwort")
TOLD_OPTIONS = ReadOptions(columns={"anchor": TOLD[0], "positive": TOLD[1]})


def pairs(anchor: str, positive: str) -> list[Record]:
    return [{anchor: one, positive: other, "page": 7} for one, other in PAIRS]


def triplets(negative: str, *, listed: bool) -> list[Record]:
    hard = [f"nothing like it, {n}" for n in range(len(PAIRS))]
    return [
        {**record, negative: [no] if listed else no} for record, no in zip(pairs("query", "pos"), hard, strict=True)
    ]


#: Each list: one dataset under several names.
DATASETS: dict[str, list[tuple[list[Record], ReadOptions]]] = {
    "pairs": [
        *((pairs(*names), ReadOptions()) for names in NAMES),
        (pairs(*TOLD), TOLD_OPTIONS),
        ([{**record, "pos": [record["pos"]]} for record in pairs("query", "pos")], ReadOptions()),
    ],
    "triplets": [
        (triplets(name, listed=listed), ReadOptions())
        for name, listed in [
            ("negative", False),
            ("negative", True),
            ("neg", True),
            ("negatives", True),
            ("neg_doc", False),
            ("negative_1", False),
        ]
    ],
    "labels": [
        ([{text: one, "label": n % 3} for n, (one, _) in enumerate(PAIRS)], ReadOptions())
        for text in ("text", "sentence")
    ],
    "views": [([{"views": [*pair, f"view {n}"]} for n, pair in enumerate(PAIRS)], ReadOptions())],
    "texts": [([{name: one} for one, _ in PAIRS], ReadOptions()) for name in ("text", "sentence")],
    "vectors": [
        ([{name: [n + 0.5, 1.0], "label": f"l{n % 3}"} for n in range(12)], ReadOptions())
        for name in ("vector", "embedding")
    ],
}


def opened(folder: Path, content: bytes, options: ReadOptions, tokenizer: Tokenizer = words.words) -> Prepared:
    """What a job trains on, prepared from a file of this content."""
    folder.mkdir(parents=True)
    path = folder / "upload"
    path.write_bytes(content)
    assert validation.validate(path, options=options).usable
    return prepare(validation.rows(path, options=options), folder / "entry", tokenizer=tokenizer, limit=48)


def first_batches(data: Prepared, n: int = 5) -> list[list[list[int]]]:
    mixture = Mixture([data], batch_size=4, seed=3, epochs=5)
    return [
        [each.tolist() for each in (batch.items, batch.contents, batch.labels, batch.asks)]
        for batch in islice(mixture.starting_at(mixture.start), n)
    ]


@pytest.mark.parametrize("name", DATASETS)
def test_every_form_of_a_dataset_gives_the_same_first_batches(tmp_path: Path, name: str) -> None:
    expected = None
    named = DATASETS[name]
    # The first naming in every form compressed in every way, each further one in every form.
    kinds = [(0, form, compression) for form, compression in product(FORMS, COMPRESSIONS)]
    kinds += [
        (number, *each) for number in range(1, len(named)) for each in zip(FORMS, cycle(COMPRESSIONS), strict=False)
    ]
    for number, form, compression in kinds:
        records, options = named[number]
        content = COMPRESSIONS[compression](FORMS[form](records))
        data = opened(tmp_path / f"{number}-{form}-{compression}", content, options)
        assert data.format == name
        found = first_batches(data), _inputs(data)
        expected = expected or found
        assert len(found[0]) == 5
        assert found == expected, (list(records[0]), form, compression)


def _inputs(data: Prepared) -> list[Any]:
    """What the items are: tokens or vectors."""
    if data.starts is None:
        return np.asarray(data.vectors).tolist()
    ids, starts = np.asarray(data.ids), np.asarray(data.starts)
    return [ids[start:end].tolist() for start, end in pairwise(starts)]


def test_every_form_of_a_dataset_gives_the_same_loss(tmp_path: Path, tiny_folder: Path, config: TrainingConfig) -> None:
    files: Sequence[tuple[bytes, ReadOptions]] = [
        (FORMS["jsonl"](pairs(*NAMES[0])), ReadOptions()),
        (COMPRESSIONS["zst"](FORMS["parquet"](pairs(*TOLD))), TOLD_OPTIONS),
        (COMPRESSIONS["gz"](FORMS["csv"](pairs(*NAMES[4]))), ReadOptions()),
    ]
    losses = []
    for number, (content, options) in enumerate(files):
        encoder = TextEncoder.load(tiny_folder)
        data = opened(tmp_path / str(number), content, options, encoder.tokenizer)
        steps: list[float] = []
        trainer = Trainer(encoder, [data], config)
        trainer.run(on_step=lambda report, steps=steps: steps.append(report.loss), should_stop=never)
        losses.append(steps)
    assert losses[0] == losses[1] == losses[2]
    assert losses[0][0] != losses[0][1]


def never() -> bool:
    return False

"""The model card: README.md of a published folder, with its pictures, written from the run and nothing else.

No text of a training or evaluation row is in it: a card travels with the model, and rows may be private.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from api_schemas.evaluation import TITLES, Evaluation, MetricComparison, Search
from encoders.registry import SCRATCH
from workers.evaluation.pictures import draw_cosines, draw_search, draw_training

_CONCLUSIONS = {"better": "better", "worse": "worse", "no_clear_difference": "no clear difference"}


@dataclass(frozen=True)
class DataFile:
    """A file that the run read."""

    purpose: str  # such as: training
    file_id: str
    sha256: str
    rows: int | None  # as far as they were counted


def purpose_of(param: str) -> str:
    """What a file is for that a request names in this field."""
    if "additional" in param:
        return "training"
    return {"training_file": "training", "validation_file": "evaluation"}.get(param, param.rpartition(".")[2])


@dataclass(frozen=True)
class Run:
    """What a card is written from."""

    job_id: str
    base_model: str
    started_from: str  # a tuned model, where the job began with one
    license: str | None  # of the base model, SPDX
    dimension: int
    max_seq_length: int | None  # None: it reads vectors
    loading: str | None  # how to use the folder, in Markdown; None: as SentenceTransformer
    notes: str  # what else to know when it is used, in Markdown
    files: Sequence[DataFile]
    method: dict[str, Any]
    seed: int
    steps: int
    trained_tokens: int
    losses: Sequence[tuple[int, float]]  # (step, loss)
    evaluation: Evaluation | None

    @property
    def is_from_scratch(self) -> bool:
        """Whether nothing is in it but what its jobs' files taught."""
        return self.base_model == SCRATCH


def write(run: Run, folder: Path) -> None:
    """Replace the folder's README.md, and draw its pictures. Raises OSError."""
    draw_training(folder / "training.svg", run.losses, run.evaluation)
    if run.evaluation is not None:
        draw_cosines(folder / "cosines.svg", run.evaluation.cosines)
        if run.evaluation.search is not None:
            draw_search(folder / "search.svg", run.evaluation.search)
    (folder / "README.md").write_text(text_of(run), encoding="utf-8")


def text_of(run: Run) -> str:
    """The card in Markdown, with the front matter that model hubs read."""
    parts = [_front_matter(run), _opening(run), _loading(run), _figures(run), _data(run), _training(run), _limits(run)]
    if run.evaluation is not None and run.evaluation.search is not None:
        parts.insert(4, _search(run.evaluation.search))
    return "\n".join(parts)


def _front_matter(run: Run) -> str:
    license_line = f"license: {run.license}\n" if run.license else ""
    if run.max_seq_length is None:
        return f"---\n{license_line}tags:\n- feature-extraction\n- vector-adapter\n---\n"
    base_line = "" if run.is_from_scratch else f"base_model: {json.dumps(run.base_model)}\n"
    return f"""---
library_name: sentence-transformers
pipeline_tag: sentence-similarity
{base_line}{license_line}tags:
- sentence-transformers
- feature-extraction
- sentence-similarity
---
"""


def _opening(run: Run) -> str:
    further = "" if run.started_from == run.base_model else f" Training began with `{run.started_from}`."
    if run.max_seq_length is None:
        return f"""# A fine-tuned adapter for vectors

It takes vectors of {run.dimension} numbers, made by the encoder that made those it was trained on, to vectors of
{run.dimension} numbers of length 1. Two are as alike as their dot product says. The encoder itself is not in here.
{further.lstrip()}
"""
    origin = "trained from scratch" if run.is_from_scratch else f"tuned from {run.base_model}"
    return f"""# A text encoder {origin}

It maps a text of up to {run.max_seq_length} tokens to {run.dimension} numbers of length 1. Two texts are as alike as
the dot product of theirs says.{further}
"""


def _loading(run: Run) -> str:
    if run.loading is not None:
        return f"## How to use it\n\n{run.loading}"
    usage = """## How to load it

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("path/to/this/folder")
vectors = model.encode(["one text", "another"])
```
"""
    return usage + run.notes


def _figures(run: Run) -> str:
    found = run.evaluation
    if found is None:
        return "## Evaluation\n\nNone: the job had no rows to evaluate on, or none that say what is alike.\n"
    split = found.split
    origin = "the job's validation file" if split.source == "validation_file" else "held out of the training file"
    rows = "\n".join(map(_row, found.metrics))
    noun = "texts" if run.max_seq_length is not None else "vectors"
    return f"""## Evaluation

{found.summary}.{_untrained_base(run)}

| Metric | Base | Tuned | Difference | 95 % interval | |
|---|---|---|---|---|---|
{rows}

Rows: {split.rows}, {origin}. {_asked(found, noun)}
Split: `{split.id}`. Intervals: paired bootstrap, {found.resamples} resamples of {split.groups} groups of rows that
share texts, seed {found.seed}. They tell how far the choice of these rows moves the difference, and nothing of other
data.

![Cosines of {_told_apart(found, noun)}, before and after training](cosines.svg)
"""


def _asked(found: Evaluation, noun: str) -> str:
    split = found.split
    if found.task == "scored_pairs":
        return f"The cosines of {split.queries} pairs were compared with their scores."
    distractors = f", {split.distractors} of them from the training file" if split.distractors else ""
    return f"{split.queries} {noun} looked for their answers among {split.documents}{distractors}."


def _told_apart(found: Evaluation, noun: str) -> str:
    if found.task == "scored_pairs":
        return "pairs with high and with low scores"
    return f"{noun} that are alike and of others"


def _untrained_base(run: Run) -> str:
    return " The base is the same encoder before training, with random weights." if run.started_from == SCRATCH else ""


def _search(search: Search) -> str:
    return f"""## Search

{search.said}. The trials were compared on {search.rows} rows of the training files that were set aside for it; they are
no part of the evaluation above. The best of several looks a little better on them than it is.

![{TITLES[search.metric]} of the trials, with 95 % intervals](search.svg)
"""


def _row(metric: MetricComparison) -> str:
    return (
        f"| {TITLES[metric.name]} | {metric.base:.3f} | {metric.tuned:.3f} | {metric.difference:+.3f} | "
        f"{metric.low:+.3f} … {metric.high:+.3f} | {_CONCLUSIONS[metric.conclusion]} |"
    )


def _data(run: Run) -> str:
    rows = "\n".join(
        f"| {file.purpose} | `{file.file_id}` | {'' if file.rows is None else file.rows} | `{file.sha256}` |"
        for file in run.files
    )
    return f"""## Data

| Used for | File | Rows | SHA-256 |
|---|---|---|---|
{rows}
"""


def _training(run: Run) -> str:
    kept = run.evaluation.kept_step if run.evaluation else run.steps
    return f"""## Training

Job `{run.job_id}`: {run.steps} steps, {run.trained_tokens} tokens, seed {run.seed}. The weights are those after step
{kept}.

![The loss by step, and the metric where it was measured](training.svg)

```json
{json.dumps(run.method, indent=2, ensure_ascii=False)}
```
"""


def _limits(run: Run) -> str:
    noun = "vectors" if run.max_seq_length is None else "texts"
    return f"""## Intended use and limits

Search, clustering and comparison of {noun} like those it was trained on, by cosine similarity. A cosine is no
probability: choose thresholds on data of your own. It is measured on one split of one data set; {_elsewhere(run)}
Vectors of different models must not be compared.

## Licence

{_rights(run)}
the training data.
"""


def _elsewhere(run: Run) -> str:
    """What to expect of inputs that are unlike the training data."""
    if run.is_from_scratch:
        return """of
texts of other kinds it knows next to nothing, and of other languages nothing: all it has learned is in the training
data, with what is biased in them."""
    noun, base = _noun_and_base(run)
    return f"""on {noun} of other
kinds and in other languages it may be worse than the {base}. It takes over what is biased in the {base}
and in the training data."""


def _rights(run: Run) -> str:
    _, base = _noun_and_base(run)
    if run.is_from_scratch:
        return (
            "No other model is in it, so no other model's licence holds. Whoever publishes it has to mind the rights to"
        )
    if run.max_seq_length is None:
        return f"The {base} has a licence of its own. Whoever publishes this adapter has to mind it, and the rights to"
    known = f"`{run.license}`" if run.license else "not known to the service that trained it; ask its operator"
    return f"The {base}'s licence is {known}. Whoever publishes this model has to mind it, and the rights to"


def _noun_and_base(run: Run) -> tuple[str, str]:
    return ("vectors", "encoder that made the vectors") if run.max_seq_length is None else ("texts", "base encoder")

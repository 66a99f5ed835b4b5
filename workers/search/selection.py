"""The rows that trials are compared on, and whether there can be a search at all.

They are carved out of the rows that the job trains on, by whole groups as the job's own split is, so that neither a
trial nor the choice among trials has seen a text of the job's evaluation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import numpy as np

from api_schemas.defaults import FEWEST_ROWS_TO_SPLIT, MOST_EVAL_ROWS, REDUCTIONS, searched
from api_schemas.errors import LikenessError
from api_schemas.methods import Contrastive, Method
from workers.data.prepared import Prepared
from workers.evaluation.plan import Say
from workers.evaluation.questions import NoQuestionsError, questions_of
from workers.evaluation.scored_pairs import scored_pairs_of
from workers.evaluation.split import Split, carved
from workers.search.space import Space
from workers.training.mixing import Mixture

#: Of the rows that are left for training, and no more than an evaluation split has.
SHARE = 0.2


def selection_of(split: Split, seed: int) -> Split | None:
    """The same at every attempt. None if no group of rows is small enough."""
    share = min(SHARE, MOST_EVAL_ROWS / max(1, split.training[0].row_count))
    return carved(split.training, share, seed)


def searchable(method: Method, split: Split | None, training: Sequence[Prepared], seed: int, *, say: Say) -> Method:
    """The resolved method, without a search for the loss where both are one.

    Raises LikenessError, of a job that asks for a search that its rows don't allow or for trials of nothing;
    NoBatchError.
    """
    contrastive = method.contrastive
    fields = searched(contrastive)
    if not fields:
        if contrastive.hyperparameters.trials is not None:
            _refuse(
                "hyperparameters.trials",
                "counts the trials of a search, and nothing is searched for. Leave it out, or set "
                '`method.contrastive.loss.temperature` to "search".',
            )
        return method
    _check(contrastive, fields[0], split, seed)
    if contrastive.loss.name == "search" and not any(map(_has_several_positives, training)):
        say("With one positive for each anchor ntxent and supcon are one: only ntxent is tried")
        return _with_ntxent(method)
    return method


def _check(contrastive: Contrastive, field: str, split: Split | None, seed: int) -> None:
    chosen_by_evaluation = {
        "early_stopping": contrastive.early_stopping is not None,
        "evaluation.keep": contrastive.evaluation.keep == "best",
        "evaluation.every_steps": contrastive.evaluation.every_steps is not None,
    }
    for name, given in chosen_by_evaluation.items():
        if given:
            _refuse(name, "must be left out of a search, whose trials are compared on rows of their own.")
    if split is None or not _is_askable(split, seed):
        _refuse(field, 'is "search", and the job has no rows to evaluate on. Give a `validation_file`, or a value.')
    rows = split.training[0].row_count + (split.evaluation.row_count if split.source == "training_file" else 0)
    if rows < FEWEST_ROWS_TO_SPLIT:
        _refuse(
            field,
            f'is "search", which needs a training file of at least {FEWEST_ROWS_TO_SPLIT} rows, some of which are set '
            "aside to compare trials on. Give a value, or more rows.",
        )
    selection = selection_of(split, seed)
    if selection is None or not _is_askable(selection, seed):
        _refuse(
            field,
            'is "search", and no rows to compare trials on can be set aside without sharing a text with the rest: the '
            "rows are connected by texts that they share, or labels have too few texts. Give a value.",
        )
    _check_batches(contrastive, selection, seed)


def _check_batches(contrastive: Contrastive, selection: Split, seed: int) -> None:
    """Raises NoBatchError if a trial could take no step on what the selection leaves."""
    space = Space.of(contrastive, rows=sum(data.row_count for data in selection.training))
    given = contrastive.hyperparameters.batch_size
    for size in (given,) if isinstance(given, int) else space.batch_sizes:
        Mixture(selection.training, batch_size=size, seed=seed, epochs=1, max_steps=1)


def _is_askable(split: Split, seed: int) -> bool:
    try:
        if split.evaluation.scores is not None:
            scored_pairs_of(split.evaluation, seed=seed)
        else:
            questions_of(split.evaluation, split.training[0], seed=seed)
    except NoQuestionsError:
        return False
    return True


def _has_several_positives(data: Prepared) -> bool:
    if data.labels is not None:
        return True
    return data.format == "views" and bool((np.diff(data.row_starts) > 2).any())


def _with_ntxent(method: Method) -> Method:
    contrastive = method.contrastive
    reduction = contrastive.loss.reduction
    loss = contrastive.loss.model_copy(
        update={"name": "ntxent", "reduction": REDUCTIONS["ntxent"] if reduction == "auto" else reduction}
    )
    changed = contrastive.model_copy(update={"loss": loss})
    if not searched(changed):
        fixed = changed.hyperparameters.model_copy(update={"trials": None})
        changed = changed.model_copy(update={"hyperparameters": fixed})
    return method.model_copy(update={"contrastive": changed})


def _refuse(field: str, reason: str) -> NoReturn:
    name = f"method.contrastive.{field}"
    raise LikenessError("invalid_value", f"`{name}` {reason}", param=name)

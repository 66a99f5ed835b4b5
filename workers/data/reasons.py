"""Why a file cannot be trained on as it is, in sentences that say what to do."""

from __future__ import annotations

from collections.abc import Iterator

from api_schemas.amounts import number
from api_schemas.batches import too_few_classes
from api_schemas.reports import Overlap, Reason, TrainingPlan
from workers.data.overlap import is_in_training
from workers.data.profile import Profile
from workers.data.relevance import NEEDS_TEXTS
from workers.data.scores import FOR_EVALUATION
from workers.data.validation import FileReport


def reasons(
    found: FileReport,
    profile: Profile,
    plan: TrainingPlan | None,
    overlap: Overlap | None,
    evaluation: FileReport | None,
) -> Iterator[Reason]:
    """All of them; `evaluation` is what validation found in the evaluation file, `overlap` what it shares with this."""
    if not found.usable:
        yield Reason(code=found.errors[0].code, message=found.summary or found.errors[0].message)
    elif found.format == "relevance":
        yield Reason(code="relevance_without_texts", message=NEEDS_TEXTS)
    elif found.format == "scored_pairs":
        yield Reason(code="pairs_with_score", message=FOR_EVALUATION)
    elif profile.format in ("pairs", "vector_pairs") and profile.same_inputs.count == profile.rows:
        message = "In every row the anchor equals its positive, so there is nothing to learn. Name other columns."
        yield Reason(code="no_positives", message=message)
    elif plan is not None and profile.labels is not None:
        too_few = too_few_classes(profile.labels, profile.rows, plan.batch_size)
        if too_few is not None:
            yield Reason(code="too_few_classes", message=too_few)
    if evaluation is not None and not evaluation.usable:
        message = f"The evaluation file can't be used. {evaluation.summary}"
        yield Reason(code=evaluation.errors[0].code, message=message)
    if overlap is not None and is_in_training(overlap):
        yield Reason(code="evaluation_in_training", message=_evaluation_in_training(overlap))


def _evaluation_in_training(overlap: Overlap) -> str:
    if overlap.identical:
        return "The evaluation file is the training file, byte for byte. Evaluate on rows that are not trained on."
    return (
        f"{number(overlap.rows_in_training)} of the evaluation file's {number(overlap.rows)} rows stand in the "
        "training file, more than half. Take them out of one of the two files."
    )

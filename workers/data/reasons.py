"""Why a file cannot be trained on as it is, in sentences that say what to do."""

from __future__ import annotations

from collections.abc import Iterator

from api_schemas.defaults import SMALLEST_BATCH
from api_schemas.reports import Overlap, Reason, TrainingPlan
from workers.data.overlap import is_in_training
from workers.data.plan import batches
from workers.data.profile import Profile
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
    elif profile.format in ("pairs", "vector_pairs") and profile.same_inputs.count == profile.rows:
        message = "In every row the anchor equals its positive, so there is nothing to learn. Name other columns."
        yield Reason(code="no_positives", message=message)
    elif plan is not None and (too_few := _too_few_classes(profile, plan)):
        yield Reason(code="too_few_classes", message=too_few)
    if evaluation is not None and not evaluation.usable:
        message = f"The evaluation file can't be used. {evaluation.summary}"
        yield Reason(code=evaluation.errors[0].code, message=message)
    if overlap is not None and is_in_training(overlap):
        yield Reason(code="evaluation_in_training", message=_evaluation_in_training(overlap))


def _too_few_classes(profile: Profile, plan: TrainingPlan) -> str | None:
    if profile.labels is None:
        return None
    if plan.batch_size < SMALLEST_BATCH:
        return (
            f"A batch of {plan.batch_size} holds no two rows of each of two labels. "
            f"Choose a batch_size of {SMALLEST_BATCH} or more."
        )
    count = batches(profile.rows, plan.batch_size)
    if 2 * profile.labels.groups < count:
        largest = profile.labels.balance.largest
        return (
            f"Only {profile.labels.groups} of {count} batches could hold a second label: {number(largest.rows)} of "
            f"{number(profile.rows)} rows are {largest.label!r}. Keep fewer of those, or add rows of other labels."
        )
    return None


def _evaluation_in_training(overlap: Overlap) -> str:
    if overlap.identical:
        return "The evaluation file is the training file, byte for byte. Evaluate on rows that are not trained on."
    return (
        f"{number(overlap.rows_in_training)} of the evaluation file's {number(overlap.rows)} rows stand in the "
        "training file, more than half. Take them out of one of the two files."
    )


def number(count: int) -> str:
    """A count as people read it: 12 345."""
    return f"{count:,}".replace(",", " ")


def percent(share: float) -> str:
    """A share from 0 to 1 as people read it; what is there is never 0 %."""
    return "under 1 %" if 0 < share < 0.01 else f"{100 * share:.0f} %"

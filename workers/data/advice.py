"""What would make training on a file worse, the most important first, in sentences that say what to do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import groupby

from api_schemas.amounts import number, percent
from api_schemas.batches import batches_an_epoch
from api_schemas.files import DataFormat
from api_schemas.reports import Collisions, Overlap, ReportWarning, Rows, TrainingPlan
from workers.data.overlap import is_in_training
from workers.data.profile import Profile

#: A label that has more than this share of the rows is told.
_DOMINANT = 0.8
#: So many texts, as a share, may be cut without a word.
_CUT_IN_SILENCE = 0.05
#: With more pairs that share a text, as a share of the batch's rows, than this, batches get short.
_CROWDED = 0.125
_SHOWN_ROWS = 5
_NOUNS: Mapping[DataFormat, str] = {"vectors": "vector", "vector_pairs": "vector"}


def warnings(
    profile: Profile, plan: TrainingPlan | None, collisions: Collisions | None, overlap: Overlap | None
) -> Iterator[ReportWarning]:
    """All of them."""
    yield from _conflicts(profile)
    yield from _negatives(profile)
    yield from _overlap(overlap)
    yield from _same_inputs(profile)
    yield from _duplicates(profile)
    yield from _labels(profile, plan)
    yield from _shared_texts(collisions)
    yield from _texts_cut(profile)


def _conflicts(profile: Profile) -> Iterator[ReportWarning]:
    conflicts = profile.conflicts
    if conflicts is None or not conflicts.count:
        return
    (one, other), (label, another) = conflicts.first[0].rows, conflicts.first[0].labels
    yield ReportWarning(
        code="conflicting_labels",
        message=f"{_have(conflicts.count, _noun(profile))} two labels or more; the first is {label!r} in row {one} and "
        f"{another!r} in row {other}. Decide for one of them: both pull at the same place.",
    )


def _negatives(profile: Profile) -> Iterator[ReportWarning]:
    if profile.negative_is_alike.count:
        yield ReportWarning(
            code="negative_is_alike",
            message=f"{_have(profile.negative_is_alike.count, 'row')} a hard negative that equals the row's own "
            f"anchor or positive: {_listed(profile.negative_is_alike)}. Take it out of those rows.",
        )


def _overlap(overlap: Overlap | None) -> Iterator[ReportWarning]:
    if overlap is None or is_in_training(overlap) or not overlap.texts_in_training:
        return
    first = overlap.first[0]
    yield ReportWarning(
        code="evaluation_overlap",
        message=f"{number(overlap.texts_in_training)} of the evaluation file's {number(overlap.texts)} texts stand in "
        f"the training file, and {number(overlap.rows_in_training)} of its {number(overlap.rows)} rows as a whole; the "
        f"first is in row {first.row}, and in row {first.same_as} of the training file. "
        "The evaluation will look better than it is: take them out of one of the two files.",
    )


def _same_inputs(profile: Profile) -> Iterator[ReportWarning]:
    if profile.same_inputs.count and profile.format != "scored_pairs":
        equal = "two views that are equal" if profile.format == "views" else "an anchor that equals its positive"
        yield ReportWarning(
            code="same_inputs",
            message=f"{_have(profile.same_inputs.count, 'row')} {equal}: {_listed(profile.same_inputs)}. "
            "Remove them: they teach nothing.",
        )


def _duplicates(profile: Profile) -> Iterator[ReportWarning]:
    duplicates = profile.duplicates
    if not duplicates.rows:
        return
    first = duplicates.first_rows[0]
    costs = "what is repeated counts twice" if profile.labels is None else "training leaves them out"
    yield ReportWarning(
        code="duplicate_rows",
        message=f"{number(duplicates.rows)} of {number(profile.rows)} rows repeat an earlier one; the first is row "
        f"{first.row}, which equals row {first.same_as}. Remove them: {costs}.",
    )


def _labels(profile: Profile, plan: TrainingPlan | None) -> Iterator[ReportWarning]:
    if profile.labels is None or plan is None:
        return
    balance, groups = profile.labels, profile.labels.batches_with_two
    count = batches_an_epoch(profile.rows, plan.batch_size)
    if count <= 2 * groups < 2 * count:
        yield ReportWarning(
            code="few_classes",
            message=f"Only {groups} of {count} batches can hold a second label. Add rows of labels other than "
            f"{balance.largest.label!r}, or choose a larger batch_size.",
        )
    if 0 < balance.once < balance.labels:
        yield ReportWarning(
            code="labels_once",
            message=f"{number(balance.once)} of {number(balance.labels)} labels occur once. Their rows have no "
            "positive and serve as negatives only: add a row to each, or join labels.",
        )
    if balance.labels > 1 and balance.largest_share > _DOMINANT:
        yield ReportWarning(
            code="one_label_dominates",
            message=f"{percent(balance.largest_share)} of the rows have the label {balance.largest.label!r}. Most "
            "pairs will be of that label: keep fewer of its rows, or split it.",
        )


def _shared_texts(collisions: Collisions | None) -> Iterator[ReportWarning]:
    if collisions is not None and collisions.expected > _CROWDED * collisions.batch_size:
        yield ReportWarning(
            code="shared_texts",
            message=f"About {collisions.expected:.0f} pairs of rows in a batch of {collisions.batch_size} share "
            "a text. They are kept apart, so rows wait and batches grow short. If it is an answer that many "
            "anchors have, make it their label.",
        )


def _texts_cut(profile: Profile) -> Iterator[ReportWarning]:
    lengths = profile.token_lengths
    if lengths is not None and lengths.texts_cut > _CUT_IN_SILENCE:
        yield ReportWarning(
            code="texts_cut",
            message=f"{percent(lengths.texts_cut)} of the texts are longer than the {lengths.max_seq_length} tokens "
            f"that are read, and {percent(lengths.tokens_cut)} of all tokens are cut. Put what matters first, or split "
            "the texts.",
        )


def _noun(profile: Profile) -> str:
    return _NOUNS.get(profile.format, "text") if profile.format else "text"


def _have(count: int, noun: str) -> str:
    return f"1 {noun} has" if count == 1 else f"{number(count)} {noun}s have"


def _listed(rows: Rows) -> str:
    """Such as `row 3`, or `rows 1–3, 7 and more`."""
    shown = [str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in _runs(rows.first[:_SHOWN_ROWS])]
    noun = "row" if rows.count == 1 else "rows"
    if rows.count > _SHOWN_ROWS:
        return f"{noun} {', '.join(shown)} and more"
    return f"{noun} {' and '.join(filter(None, [', '.join(shown[:-1]), shown[-1]]))}"


def _runs(rows: list[int]) -> Iterator[list[int]]:
    for _, run in groupby(enumerate(rows), key=lambda each: each[1] - each[0]):
        yield [row for _, row in run]

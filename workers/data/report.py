"""The report on a file: its verdict, what to change about it, and what would be trained. Nothing is read here."""

from __future__ import annotations

from api_schemas.reports import Collisions, Estimate, Overlap, RefusedKind, Report, Verdict
from workers.data.advice import warnings
from workers.data.collisions import expected_in_batch
from workers.data.plan import Setting, plan
from workers.data.profile import Profile
from workers.data.reasons import reasons
from workers.data.validation import FileReport


def report(
    found: FileReport,
    profile: Profile,
    setting: Setting,
    *,
    size: int,
    evaluation: FileReport | None = None,
    overlap: Overlap | None = None,
    token_lengths_missing: str | None = None,
) -> Report:
    """Put together what validation and the profile found in a file of `size` bytes; without an estimate."""
    planned = plan(profile, setting)
    collisions = None
    if planned is not None:
        expected = expected_in_batch(profile.sharing, profile.rows, planned.batch_size)
        collisions = Collisions(batch_size=planned.batch_size, expected=expected)
    refused = _refused(found)
    why_not = [*reasons(found, profile, planned, overlap, evaluation)]
    return Report(
        verdict=Verdict(usable=not why_not, reasons=why_not),
        warnings=[*warnings(profile, planned, collisions, overlap)],
        format=found.format,
        bytes=size,
        rows=found.rows,
        refused_rows=sum(kind.count for kind in refused),
        refused=refused,
        training=planned,
        estimate=None,
        estimate_missing="Only `likeness inspect` measures it.",
        duplicates=profile.duplicates,
        conflicts=profile.conflicts,
        same_inputs=profile.same_inputs,
        negative_is_alike=profile.negative_is_alike,
        collisions=collisions,
        labels=profile.labels,
        token_lengths=profile.token_lengths,
        token_lengths_missing=token_lengths_missing if profile.token_lengths is None else None,
        scripts=profile.scripts,
        vectors=profile.vectors,
        scores=profile.scores,
        overlap=overlap,
    )


def with_estimate(report: Report, estimate: Estimate | str) -> Report:
    """The report with an estimate, or with the reason why there is none."""
    missing = estimate if isinstance(estimate, str) else None
    measured = None if isinstance(estimate, str) else estimate
    return report.model_copy(update={"estimate": measured, "estimate_missing": missing})


def _refused(found: FileReport) -> list[RefusedKind]:
    """The kinds of refused rows; what is refused of the file as a whole is a reason."""
    about_file = {(error.code, error.field) for error in found.errors if error.row is None}
    kinds = [
        RefusedKind(
            code=code,
            field=name,
            count=count,
            first=[error for error in found.errors if (error.code, error.field) == (code, name)],
        )
        for (code, name), count in found.counts.items()
        if (code, name) not in about_file
    ]
    return sorted(kinds, key=lambda kind: -kind.count)

"""What a job's evaluation will be, decided before an accelerator waits for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from api_schemas.defaults import searched
from api_schemas.methods import Method
from storage.job_moves import Level
from workers.data.prepared import Prepared
from workers.evaluation.metrics import metrics_of
from workers.evaluation.split import Split, carved, given


class NotEvaluableError(ValueError):
    """The job asks for what no evaluation of its rows can give; the message says what to change."""


class Say(Protocol):
    """Writes an event of the job."""

    def __call__(self, message: str, *, level: Level = "info") -> None: ...


def split_for(
    method: Method, training: Sequence[Prepared], validation: Prepared | None, seed: int, *, asked: Method, say: Say
) -> tuple[Method, Split | None]:
    """The job's split, and its resolved method with what is now decided: the split's share and the main metric.

    `asked` is the method as it was sent. Raises NotEvaluableError.
    """
    source = training[0] if validation is None else validation
    possible = metrics_of(source)
    share = method.contrastive.data.eval_split
    wanted = asked.contrastive.data.eval_split != "auto"
    if validation is not None or not (possible or wanted):
        share = 0.0
    split = split_of(training, validation, share, seed)
    if share and split is None:
        _without_split(wanted, say)
        share = 0.0
    if split is not None and split.source == "training_file":
        _tell(split, training, say)
    method = _with(method, share=share, metric=_main_metric(method, possible))
    if split is None or not possible:
        _refuse_what_needs_a_split(method)
    return method, split


def split_of(training: Sequence[Prepared], validation: Prepared | None, share: float | str, seed: int) -> Split | None:
    """The split that a resolved method stands for: the same at every attempt."""
    if validation is not None:
        return given(training, validation)
    return carved(training, share, seed) if isinstance(share, float) else None


def _tell(split: Split, training: Sequence[Prepared], say: Say) -> None:
    say(
        f"{split.evaluation.row_count} of {len(training[0])} rows are held out for the evaluation and not trained on; "
        "no text of them stands in another row"
    )
    left_out = sum(len(whole) - rest.row_count for whole, rest in zip(training[1:], split.training[1:], strict=True))
    if left_out:
        say(f"{left_out} rows of the additional training files hold a text of these, and are left out")


def _without_split(wanted: bool, say: Say) -> None:
    reason = (
        "No evaluation split can be carved out of the training file without sharing a text with the rest: its rows are "
        "all connected by texts that they share, its labels have too few texts, or too little is left of another file."
    )
    if wanted:
        raise NotEvaluableError(f"`method.contrastive.data.eval_split`: {reason} Give a `validation_file`, or 0.")
    say(f"{reason} The job is not evaluated; give a `validation_file` to have it evaluated.", level="warn")


def _main_metric(method: Method, possible: tuple[str, ...]) -> str:
    metric = method.contrastive.evaluation.metric
    if not possible:
        return metric
    if metric == "auto":
        return possible[0]
    if metric not in possible:
        raise NotEvaluableError(
            f"`method.contrastive.evaluation.metric` is {metric}, and rows like these have one of: "
            f"{', '.join(possible)}. Choose one of these, or auto."
        )
    return metric


def _refuse_what_needs_a_split(method: Method) -> None:
    contrastive = method.contrastive
    needing: dict[str, Any] = {
        "early_stopping": contrastive.early_stopping,
        "evaluation.keep: best": contrastive.evaluation.keep == "best",
        "evaluation.every_steps": contrastive.evaluation.every_steps,
        **dict.fromkeys(searched(contrastive), "search"),
    }
    for name, needed in needing.items():
        if needed:
            raise NotEvaluableError(
                f"`method.contrastive.{name}` needs rows to evaluate on, and this job has none. Give a "
                "`validation_file`, or `method.contrastive.data.eval_split` and rows that say what is alike."
            )


def _with(method: Method, *, share: float | str, metric: str) -> Method:
    contrastive = method.contrastive
    update = {
        "data": contrastive.data.model_copy(update={"eval_split": share}),
        "evaluation": contrastive.evaluation.model_copy(update={"metric": metric}),
    }
    return method.model_copy(update={"contrastive": contrastive.model_copy(update=update)})

"""From a file, and perhaps an evaluation file, to the report: one pass over each."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from api_schemas.reports import Report
from encoders import registry
from encoders.errors import EncoderError
from storage.manifests import sha256
from workers.data import beir
from workers.data.formats import ReadOptions
from workers.data.lengths import Measure
from workers.data.overlap import Evaluation
from workers.data.plan import Setting
from workers.data.profile import Profile, Profiler
from workers.data.report import report
from workers.data.validation import FileReport, StoppedError, validate


@dataclass(frozen=True)
class Inspection:
    """What was found in a file."""

    found: FileReport
    profile: Profile
    report: Report


def inspect(
    path: Path,
    setting: Setting,
    *,
    filename: str | None = None,
    options: ReadOptions | None = None,
    measure: Measure | str,
    evaluation: Path | None = None,
    texts: tuple[Path, Path] | None = None,
    scratch: Path | None = None,
    progress: Callable[[Path, int], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Inspection:
    """Validate a file and look at what is in it.

    filename, options, should_stop: as for `validate`. texts: the corpus and the queries, if the files are relevance
    files, which have no options. measure: how to count tokens, or why that can't be done. scratch: where temporary
    files go, None for the system's directory. `progress` is told now and then of which file how many bytes have been
    read.

    Raises StoppedError, OSError.
    """

    def on_read(file: Path, position: int) -> None:
        if progress is not None:
            progress(file, position)
        if should_stop is not None and should_stop():
            raise StoppedError

    def read(file: Path, on_row: Profiler | Evaluation, name: str | None) -> FileReport:
        if texts is not None:
            return beir.validate(*texts, file, filename=name, on_row=on_row.add, on_read=on_read)
        return validate(
            file,
            filename=name,
            options=options,
            on_row=on_row.add,
            progress=partial(on_read, file),
            should_stop=should_stop,
            scratch=scratch,
        )

    options = replace(options or ReadOptions(), scratch=scratch)
    counted = None if isinstance(measure, str) else measure
    with ExitStack() as stack:
        profiler = stack.enter_context(Profiler(counted, scratch=scratch, should_stop=should_stop))
        found = read(path, profiler, filename)
        profile = profiler.profile()
        judged, overlap = None, None
        if evaluation is not None:
            held = stack.enter_context(Evaluation(scratch=scratch))
            judged = read(evaluation, held, evaluation.name)
            overlap = held.overlap(profiler.contents, identical=_identical(path, evaluation))
    return Inspection(
        found,
        profile,
        report(
            found,
            profile,
            setting,
            size=path.stat().st_size,
            evaluation=judged,
            overlap=overlap,
            token_lengths_missing=_why_no_lengths(profile, measure),
        ),
    )


def tokens_of(model: str, base_models_dir: Path | None) -> Measure | str:
    """How to count a base model's tokens, or why that can't be done here. Raises UnknownModelError."""
    limit = max_seq_length_of(model, base_models_dir)
    if limit is None:
        return f"{model} reads vectors, which have no tokens."
    try:
        # Here and not above: a worker that only validates files may have no tokenizers.
        from encoders.tokenizer import TextTokenizer

        tokenizer = TextTokenizer.of_folder(registry.locate(model, base_models_dir))
    except ImportError:
        return "The Python package tokenizers is not installed here."
    except EncoderError as error:
        return str(error)
    return Measure(model, tokenizer, limit)


def max_seq_length_of(model: str, base_models_dir: Path | None) -> int | None:
    """How many tokens of a text a base model reads; None if it reads vectors. Raises UnknownModelError."""
    models = registry.available(base_models_dir)
    if model not in models:
        registry.locate(model, base_models_dir)  # which says what there is
    return models[model].max_seq_length


def _why_no_lengths(profile: Profile, measure: Measure | str) -> str | None:
    if profile.vectors is not None:
        return "Vectors have no tokens."
    return measure if isinstance(measure, str) else None


def _identical(one: Path, other: Path) -> bool:
    return one.stat().st_size == other.stat().st_size and sha256(one) == sha256(other)

"""Why a job is refused for its files, which are usable one by one."""

from collections.abc import Iterator, Mapping

from api_schemas.inputs import VECTOR_FORMATS
from api_schemas.jobs import JobCreate
from api_schemas.methods import DataOptions
from api_schemas.reports import Report
from storage import files as single
from storage.job_files import ADDITIONAL, named, trained, with_rows
from storage.tables import File

#: The request's field, a code and a sentence.
Refusal = tuple[str, str, str]


def named_twice(asked: JobCreate) -> Refusal | None:
    """Why a job is refused whose further files are among the others."""
    for param, file_id in named(asked).items():
        if param.startswith(ADDITIONAL) and file_id == asked.training_file:
            return param, "invalid_value", f"`{param}` is the training file itself. Name each file once."
        if param.startswith(ADDITIONAL) and file_id == asked.validation_file:
            message = f"`{param}` is the validation file. Validate on rows that are not trained on."
            return param, "evaluation_in_training", message
    return None


def reason_against(files: Mapping[str, File], data: DataOptions, *, batch_size: int) -> Refusal | None:
    """Why a job's files, as far as they are validated, can't be used together; None too if nothing is known yet.

    `files` are those of `named`. What they hold when they are read in another way than when they were uploaded is
    known in preparation only.
    """
    if data.corpus is not None:
        return next(_rows_in_place_of_judgements(files), None)
    if not data.as_uploaded:
        return None
    training = trained(files)
    if len(training) > 1 and any(file.status == "uploaded" for file in training.values()):
        return None  # the rows of all of them decide the batch size
    return next(_judgements_alone(files), None) or _reason(training, files.get("validation_file"), batch_size)


def _reason(training: Mapping[str, File], validation: File | None, batch_size: int) -> Refusal | None:
    for param, file in training.items():
        against = single.reason_against(file, validation, batch_size=batch_size)
        if against is not None:
            of_training, code, message = against
            return (param if of_training == "training_file" else of_training), code, message
    return next(_unlike(training), None)


def _rows_in_place_of_judgements(files: Mapping[str, File]) -> Iterator[Refusal]:
    for param, file in with_rows(files).items():
        if file.status == "processed" and file.format != "relevance":
            message = (
                f"{file.filename} holds {file.format}, and with data.corpus and data.queries it must be a relevance "
                "file, which names texts of these two. Leave the two out, or name such a file."
            )
            yield param, "invalid_value", message


def _judgements_alone(files: Mapping[str, File]) -> Iterator[Refusal]:
    for param, file in with_rows(files).items():
        if file.format == "relevance":
            yield param, "relevance_without_texts", f"{file.filename}: {file.status_details}"


def _unlike(training: Mapping[str, File]) -> Iterator[Refusal]:
    """Files that one encoder can't read together: vectors and texts, or vectors of two dimensions."""
    (_, first), *others = training.items()
    for param, file in others:
        kinds = [_kind(each) for each in (first, file)]
        if kinds[0] != kinds[1]:
            found = f"{file.filename} holds {kinds[1]}, and {first.filename} {kinds[0]}"
            yield param, "invalid_value", f"{found}. Train on them in jobs of their own."


def _kind(file: File) -> str:
    """What an encoder is given of it."""
    if file.format not in VECTOR_FORMATS:
        return "texts"
    vectors = Report(**file.report).vectors if file.report is not None else None
    return f"vectors of {vectors.dimension} numbers" if vectors is not None else "vectors"

"""The files that a job reads: which they are, in which role, and which jobs read a file."""

from collections.abc import Mapping

from sqlalchemy import ColumnElement, or_

from api_schemas.jobs import JobCreate
from api_schemas.methods import DataOptions, Method
from storage.tables import File, Job

_DATA = "method.contrastive.data"
ADDITIONAL = f"{_DATA}.additional_training_files"
_CORPUS, _QUERIES = f"{_DATA}.corpus", f"{_DATA}.queries"


def named(asked: JobCreate | Job) -> dict[str, str]:
    """Every file that a job reads: the request's field → the file's id."""
    data = data_of(asked)
    files = {
        "training_file": asked.training_file,
        **{f"{ADDITIONAL}.{place}": file_id for place, file_id in enumerate(data.additional_training_files)},
        "validation_file": asked.validation_file,
        _CORPUS: data.corpus,
        _QUERIES: data.queries,
    }
    return {param: file_id for param, file_id in files.items() if file_id is not None}


def training_ids(job: Job) -> list[str]:
    """Ids of the files that a job trains on, in the order in which they are told."""
    return [job.training_file, *data_of(job).additional_training_files]


def data_of(asked: JobCreate | Job) -> DataOptions:
    """How a job's files are to be read."""
    method = asked.method if isinstance(asked.method, Method) else Method(**asked.method)
    return method.contrastive.data


def reads(file_id: str) -> ColumnElement[bool]:
    """Whether a job reads the file, in whatever role."""
    roles = ({"additional_training_files": [file_id]}, {"corpus": file_id}, {"queries": file_id})
    return or_(
        Job.training_file == file_id,
        Job.validation_file == file_id,
        *(Job.method.contains({"contrastive": {"data": role}}) for role in roles),
    )


def trained(files: Mapping[str, File]) -> dict[str, File]:
    """Those of a job's files, by their field, that are trained on."""
    return {param: file for param, file in files.items() if param == "training_file" or param.startswith(ADDITIONAL)}


def with_rows(files: Mapping[str, File]) -> dict[str, File]:
    """Those of a job's files that hold its rows, but for corpus and queries, which hold what the rows name."""
    return {param: file for param, file in files.items() if param not in (_CORPUS, _QUERIES)}


def training_rows(files: Mapping[str, File]) -> int:
    """Rows of all files that are trained on, as far as they are validated."""
    return sum(file.rows or 0 for file in trained(files).values())

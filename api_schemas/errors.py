"""Every way a request or a job can be refused: one table of codes, one exception, one body.

Errors
└── LikenessError      carries a code of ERROR_CODES; its status and type follow from the code
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from pydantic import BaseModel, Field


class ErrorKind(NamedTuple):
    """What a code stands for on the wire."""

    status: int
    type: str
    meaning: str


_REQUEST = "invalid_request_error"

#: code → what it means. `docs/errors.md` shows this table; a test holds the two together.
ERROR_CODES: dict[str, ErrorKind] = {
    # The request as bytes
    "bad_request": ErrorKind(400, _REQUEST, "The bytes received are not a valid HTTP request."),
    "request_timeout": ErrorKind(408, _REQUEST, "Headers or body arrived too slowly."),
    "request_too_large": ErrorKind(413, _REQUEST, "The body is larger than this route accepts."),
    "headers_too_large": ErrorKind(431, _REQUEST, "The request line and headers are too long."),
    "unsupported_encoding": ErrorKind(415, _REQUEST, "Compressed request bodies are not accepted."),
    "unsupported_media_type": ErrorKind(415, _REQUEST, "The Content-Type is not the one this route reads."),
    "too_many_parts": ErrorKind(400, _REQUEST, "A multipart form, or an upload, has more parts than it may."),
    "invalid_multipart": ErrorKind(400, _REQUEST, "The multipart form can't be read."),
    # The request as JSON
    "invalid_json": ErrorKind(400, _REQUEST, "The body is not JSON."),
    "invalid_unicode": ErrorKind(400, _REQUEST, "Text is not UTF-8, or holds NUL or a lone surrogate."),
    "json_too_deep": ErrorKind(400, _REQUEST, "JSON is nested deeper than 32 levels."),
    "duplicate_key": ErrorKind(400, _REQUEST, "An object names the same key twice."),
    "not_finite": ErrorKind(400, _REQUEST, "A number is NaN or infinite."),
    # The request's meaning
    "missing_parameter": ErrorKind(400, _REQUEST, "A required field is missing."),
    "unknown_parameter": ErrorKind(400, _REQUEST, "A field nobody knows; the nearest known name is given."),
    "read_only_parameter": ErrorKind(400, _REQUEST, "A field that only the service sets."),
    "invalid_type": ErrorKind(400, _REQUEST, "A value has the wrong JSON type."),
    "invalid_value": ErrorKind(400, _REQUEST, "A value is not one of those allowed."),
    "out_of_range": ErrorKind(400, _REQUEST, "A number or a length is outside its bounds; they are given."),
    "invalid_character": ErrorKind(400, _REQUEST, "A name holds a character it must not."),
    "too_many_inputs": ErrorKind(400, _REQUEST, "More inputs than one request may hold."),
    "input_too_long": ErrorKind(400, _REQUEST, "A text is longer than a request may hold, or than the model reads."),
    "empty_input": ErrorKind(400, _REQUEST, "There is nothing to embed."),
    "token_input_unsupported": ErrorKind(400, _REQUEST, "Token arrays are not accepted; send the texts."),
    "wrong_input": ErrorKind(400, _REQUEST, "The model reads texts and vectors came, or the other way round."),
    "dimension_mismatch": ErrorKind(400, _REQUEST, "A vector has another dimension than the model's or the rest."),
    "zero_vector": ErrorKind(400, _REQUEST, "A vector is all zeros and has no direction."),
    "invalid_cursor": ErrorKind(400, _REQUEST, "`after` names nothing in this list."),
    # Who and what
    "invalid_api_key": ErrorKind(401, "authentication_error", "No valid API key was sent."),
    "not_found": ErrorKind(404, _REQUEST, "There is no such thing, or it belongs to another team."),
    "no_evaluation": ErrorKind(404, _REQUEST, "The job has no evaluation, or not yet; the message says why."),
    "model_not_found": ErrorKind(404, _REQUEST, "There is no such model."),
    "method_not_allowed": ErrorKind(405, _REQUEST, "The route exists, but not with this method."),
    # State
    "file_invalid": ErrorKind(400, _REQUEST, "The file failed validation; its object says where."),
    "file_not_validated": ErrorKind(409, _REQUEST, "The file is still being validated; ask again soon."),
    "file_in_use": ErrorKind(409, _REQUEST, "A job that has not ended reads this file."),
    "model_in_use": ErrorKind(409, _REQUEST, "A job that has not ended trains this model, or an alias names it."),
    "upload_size_mismatch": ErrorKind(400, _REQUEST, "An upload's parts hold more or fewer bytes than it declared."),
    "checksum_mismatch": ErrorKind(400, _REQUEST, "The bytes received are not those of the checksum sent."),
    "upload_already_ended": ErrorKind(409, _REQUEST, "The upload is completed or cancelled; nothing can change it."),
    "upload_expired": ErrorKind(409, _REQUEST, "The upload was not completed in time, and its parts are gone."),
    "idempotency_key_in_use": ErrorKind(409, _REQUEST, "A request with this Idempotency-Key is still being answered."),
    "idempotency_key_reused": ErrorKind(422, _REQUEST, "The Idempotency-Key was sent before, with another request."),
    "job_already_ended": ErrorKind(409, _REQUEST, "The job has ended; nothing can be done to it any more."),
    # The service's own troubles
    "rate_limit_exceeded": ErrorKind(429, "rate_limit_error", "Too much at once; Retry-After says when."),
    "queue_full": ErrorKind(429, "rate_limit_error", "The team has as many jobs that haven't ended as it may have."),
    "internal_error": ErrorKind(500, "server_error", "A defect of the service; the request id finds it."),
    "service_unavailable": ErrorKind(503, "server_error", "The database or the queue is away; retry."),
    "storage_full": ErrorKind(503, "server_error", "The disk that holds artifacts is full."),
    "storage_failed": ErrorKind(503, "server_error", "The disk that holds artifacts can't be read or written."),
    "artifact_corrupt": ErrorKind(503, "server_error", "Stored bytes differ from their checksum."),
    "weights_unavailable": ErrorKind(503, "server_error", "The base model's weights are not installed here."),
    "model_output_invalid": ErrorKind(503, "server_error", "The model produced NaN; nothing was returned."),
    "forward_lost": ErrorKind(503, "server_error", "A forward pass died or did not come back; others go on."),
    "request_deadline_exceeded": ErrorKind(504, "server_error", "The time that the request gave itself is over."),
    # Rows of a file, in a file's `errors` and never a status of their own
    "empty_file": ErrorKind(400, _REQUEST, "The file holds no rows."),
    "unsupported_file": ErrorKind(400, _REQUEST, "The file is of a kind that isn't read, such as a zip archive."),
    "file_damaged": ErrorKind(400, _REQUEST, "The file's compression or its structure is broken."),
    "file_expands_too_much": ErrorKind(400, _REQUEST, "Decompressed, the file would be far larger than it is."),
    "ambiguous_format": ErrorKind(400, _REQUEST, "Fields allow two readings; `data.format` or `data.columns` tells."),
    "invalid_utf8": ErrorKind(400, _REQUEST, "A row is not UTF-8."),
    "row_invalid_json": ErrorKind(400, _REQUEST, "A row is not one JSON object."),
    "row_missing_field": ErrorKind(400, _REQUEST, "A row lacks a field."),
    "row_invalid_type": ErrorKind(400, _REQUEST, "A field of a row has the wrong type."),
    "row_empty_text": ErrorKind(400, _REQUEST, "A text of a row, or its list of texts, is empty."),
    "row_too_long": ErrorKind(400, _REQUEST, "A row is longer than 1 MiB."),
    "row_too_many_texts": ErrorKind(400, _REQUEST, "A row holds more than 64 positives, negatives or views."),
    "row_too_few_views": ErrorKind(400, _REQUEST, "A row of views holds fewer than two."),
    "row_mixed_format": ErrorKind(400, _REQUEST, "A row has another format than the first."),
    "pairs_with_score": ErrorKind(400, _REQUEST, "A column says which pairs are alike, so not all of them are."),
    "vector_wrong_size": ErrorKind(400, _REQUEST, "A vector has another dimension than those before, or too many."),
    "vector_is_zero": ErrorKind(400, _REQUEST, "A vector is all zeros and has no direction."),
    "row_invalid_csv": ErrorKind(400, _REQUEST, "A row of a table has a quote that doesn't close, or one too many."),
    "row_ragged": ErrorKind(400, _REQUEST, "A row of a table has more or fewer cells than the header."),
    "duplicate_id": ErrorKind(400, _REQUEST, "Two texts of a corpus or of its queries have one id."),
    "unknown_id": ErrorKind(400, _REQUEST, "A relevance judgement names a text that isn't there."),
    "too_few_pairs": ErrorKind(400, _REQUEST, "A contrastive batch needs two rows that share no text."),
    "no_positives": ErrorKind(400, _REQUEST, "Every label occurs once, so no row has a positive."),
    "single_label": ErrorKind(400, _REQUEST, "All rows have one label, so no row has a negative."),
    "single_score": ErrorKind(400, _REQUEST, "All scored pairs have one score, so none is more alike than another."),
    # Reasons in a file's report
    "too_few_classes": ErrorKind(400, _REQUEST, "Most batches would hold rows of one label only."),
    "relevance_without_texts": ErrorKind(400, _REQUEST, "A relevance file came without its corpus and its queries."),
    "evaluation_in_training": ErrorKind(400, _REQUEST, "The evaluation file, or most of it, is in the training file."),
    # Reasons a job fails, in a job's `error` and never a status of their own
    "non_finite_loss": ErrorKind(500, "job_error", "The loss became NaN or infinite."),
    "embeddings_collapsed": ErrorKind(500, "job_error", "All texts got nearly the same embedding."),
    "out_of_memory": ErrorKind(500, "job_error", "Training needed more memory than there is, or was killed for that."),
    "disk_full": ErrorKind(500, "job_error", "The disk filled up while files were prepared; now the job pauses."),
    "training_file_missing": ErrorKind(500, "job_error", "The training file's bytes are gone."),
    "worker_lost": ErrorKind(500, "job_error", "The worker died more often than a job may be retried."),
    "poisoned_job": ErrorKind(500, "job_error", "The job's attempts died twice after the same step."),
    "max_runtime_exceeded": ErrorKind(500, "job_error", "The job ran for longer than its `max_runtime_seconds`."),
    "deadline_exceeded": ErrorKind(500, "job_error", "The job had not ended by its `deadline`."),
    "preparation_crashed": ErrorKind(500, "job_error", "Preparing files stopped on a defect; the worker's log has it."),
    "training_crashed": ErrorKind(500, "job_error", "Training stopped on a defect; the worker's log has it."),
}


class ErrorDetail(BaseModel):
    """What went wrong, in OpenAI's shape. `param` names the field, as a path such as `input.3`."""

    message: str
    type: str
    param: str | None = None
    code: str


class ErrorBody(BaseModel):
    """The body of every answer that is not a success.

    `error` serves OpenAI's clients; the members beside it are those of RFC 9457 (problem details).
    """

    error: ErrorDetail
    status: int = Field(description="The HTTP status, again.")
    title: str = Field(description="What the code means in general.")
    detail: str = Field(description="What went wrong here; the same words as error.message.")
    request_id: str | None = None


class LikenessError(Exception):
    """Something was refused for a reason its reader can act on.

    Raises KeyError for a code that is not in ERROR_CODES: codes are a promise, never made up on the spot.
    """

    def __init__(
        self, code: str, message: str, *, param: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.kind = ERROR_CODES[code]
        self.code = code
        self.message = message
        self.param = param
        self.headers = dict(headers or {})

    @property
    def status(self) -> int:
        """The HTTP status this error answers with."""
        return self.kind.status

    def body(self, request_id: str | None = None) -> dict[str, Any]:
        """The answer's JSON (see ErrorBody)."""
        detail = ErrorDetail(message=self.message, type=self.kind.type, param=self.param, code=self.code)
        return ErrorBody(
            error=detail,
            status=self.status,
            title=self.kind.meaning,
            detail=self.message,
            request_id=request_id,
        ).model_dump()

"""The report on a file, before any compute is spent: what is in it, what is wrong with it, what would be trained."""

from typing import Literal

from pydantic import Field

from api_schemas.base import ResponseModel
from api_schemas.files import FileFormat, RowError

#: The most conflicts that a report lists.
MAX_LISTED_CONFLICTS = 100
#: The most rows that a report lists of anything else.
MAX_LISTED_ROWS = 20
#: The most characters of a label that a report shows.
MAX_SHOWN_LABEL = 80

WarningCode = Literal[
    "conflicting_labels",
    "negative_is_alike",
    "evaluation_overlap",
    "same_inputs",
    "duplicate_rows",
    "few_classes",
    "labels_once",
    "one_label_dominates",
    "shared_texts",
    "texts_cut",
]


class Reason(ResponseModel):
    """Why a file can't be trained on as it is."""

    code: str = Field(description="A code of the error table.")
    message: str = Field(description="What is wrong and what to do about it.")


class ReportWarning(ResponseModel):
    """Something that makes training worse or slower, without making it impossible."""

    code: WarningCode
    message: str = Field(description="What was found and what to do about it.")


class Verdict(ResponseModel):
    """Whether the file can be trained on."""

    usable: bool
    reasons: list[Reason] = Field(description="Empty if it is usable.")


class RefusedKind(ResponseModel):
    """Refused rows of one kind."""

    code: str = Field(description="A code of the error table.")
    field: str | None = Field(description="The field that is wrong, if it is one field.")
    count: int
    first: list[RowError] = Field(description="At most the first 100.")


class SameAs(ResponseModel):
    """A row that holds what an earlier one holds. Rows are numbered from 1."""

    row: int
    same_as: int = Field(description="The first row that holds it.")


class Duplicates(ResponseModel):
    """What occurs more than once."""

    rows: int = Field(description="Rows that equal an earlier one.")
    first_rows: list[SameAs] = Field(description="At most 20 of them, by row.")
    different_texts: int = Field(description="Texts, or vectors, that differ from one another.")
    repeated_texts: int = Field(description="How many of those stand in more than one row.")
    first_texts: list[SameAs] = Field(description="At most 20 of them, with the second row that each stands in.")


class Rows(ResponseModel):
    """Rows that have something in common."""

    count: int
    first: list[int] = Field(description="Numbers of at most the first 20.")


class Conflict(ResponseModel):
    """One text, or vector, under two labels."""

    rows: tuple[int, int]
    labels: tuple[str, str]


class Conflicts(ResponseModel):
    """Texts, or vectors, that have two labels or more."""

    count: int
    first: list[Conflict] = Field(description="At most 100 of them, by row.")


class Collisions(ResponseModel):
    """Rows of one batch that share a text, which would be a negative of itself. They are kept apart."""

    batch_size: int
    expected: float = Field(description="Pairs of such rows that are expected in a batch of rows drawn at random.")


class LabelShare(ResponseModel):
    """A label and how many rows have it."""

    label: str = Field(description="Its first 80 characters.")
    rows: int


class LabelBalance(ResponseModel):
    """How the rows are spread over their labels."""

    labels: int
    once: int = Field(description="Labels that occur once.")
    largest: LabelShare
    smallest: LabelShare
    largest_share: float = Field(description="Share of the rows that have the largest label, 0 to 1.")
    batches_with_two: int = Field(
        description="Batches of an epoch, at most, that can hold rows of another label than the largest."
    )
    top: list[LabelShare] = Field(description="The ten most frequent, the most frequent first.")


class LengthBin(ResponseModel):
    """Texts of the sample that are longer than the bin before allows."""

    up_to: int | None = Field(description="Tokens, this number included; null: any number.")
    texts: int


class TokenLengths(ResponseModel):
    """How long texts are for the encoder, on a random sample of them. Tokens include [CLS] and [SEP]."""

    model: str
    max_seq_length: int = Field(description="Tokens that are read of a text; the rest is cut.")
    texts: int = Field(description="Texts of the file.")
    sampled: int = Field(description="Texts that were measured, all if there are no more than 20 000.")
    median: int
    p95: int
    longest: int
    texts_cut: float = Field(description="Share of the texts that are longer than max_seq_length, 0 to 1.")
    tokens_cut: float = Field(description="Share of the tokens that are cut, 0 to 1.")
    histogram: list[LengthBin]


class ScriptShare(ResponseModel):
    """Texts that are mainly in one script."""

    script: str = Field(description="Such as Latin, Cyrillic or Han; None for texts without letters.")
    share: float = Field(description="Of the sampled texts, 0 to 1.")


class Vectors(ResponseModel):
    """Ready vectors."""

    dimension: int
    smallest_norm: float
    median_norm: float = Field(description="On a random sample of at most 20 000.")
    largest_norm: float


class Scores(ResponseModel):
    """Scores of pairs: the higher, the more alike."""

    smallest: float
    median: float = Field(description="On a random sample of at most 20 000.")
    largest: float
    binary: bool = Field(description="Whether there are only two, so that the AUC is measured beside the correlation.")


class Overlap(ResponseModel):
    """What of an evaluation file stands in the training file, in rows of any form."""

    rows: int = Field(description="Rows of the evaluation file.")
    rows_in_training: int = Field(description="Rows of which every text stands in the training file.")
    texts: int = Field(description="Different texts, or vectors, of the evaluation file.")
    texts_in_training: int
    identical: bool = Field(description="Whether the two files are equal, byte for byte.")
    first: list[SameAs] = Field(
        description="At most 20 shared texts: `row` of the evaluation file, `same_as` of the training file."
    )


class TrainingPlan(ResponseModel):
    """What a job with these settings would do."""

    model: str = Field(description="For files of vectors `adapter`, unless a tuned one is trained further.")
    n_epochs: int
    batch_size: int = Field(description="Rows of a batch.")
    steps: int = Field(description="About so many: rows that share texts wait for other batches.")
    texts_per_step: int = Field(description="Texts, or vectors, that go through the encoder in a step.")
    anchors_per_step: int = Field(description="Of those, how many are compared with the rest.")
    learning_rate: float
    max_seq_length: int | None = Field(description="null for vectors.")


class Estimate(ResponseModel):
    """Time and memory, measured on a few real steps of the encoder on this machine."""

    device: str
    seconds_per_step: float
    seconds: float = Field(description="Of all steps; without loading, validation and saving.")
    peak_bytes: int = Field(description="Memory of the training process, or of the GPU if there is one.")
    measured_rows: int = Field(description="Rows of a measured step; time is scaled from them.")
    measured_steps: int


class Report(ResponseModel):
    """What is known of a file before it is trained on."""

    object: Literal["file.report"] = "file.report"
    verdict: Verdict
    warnings: list[ReportWarning] = Field(description="The most important first.")
    format: FileFormat | None = Field(description="What the rows are; null if no row told.")
    bytes: int
    rows: int = Field(description="Good rows; a row with three positives counts as three.")
    refused_rows: int
    refused: list[RefusedKind] = Field(description="Kinds of refusals, the most frequent first.")
    training: TrainingPlan | None = Field(description="null if no row is good, and for scored pairs.")
    estimate: Estimate | None
    estimate_missing: str | None = Field(description="Why there is no estimate.")
    duplicates: Duplicates
    conflicts: Conflicts | None = Field(description="Of rows with labels.")
    same_inputs: Rows = Field(description="Pairs whose anchor equals its positive, rows with two equal views.")
    negative_is_alike: Rows = Field(description="Rows with a hard negative that equals their anchor or positive.")
    collisions: Collisions | None
    labels: LabelBalance | None = Field(description="Of rows with labels.")
    token_lengths: TokenLengths | None
    token_lengths_missing: str | None = Field(description="Why there are no token lengths.")
    scripts: list[ScriptShare] = Field(description="The most frequent first.")
    vectors: Vectors | None = Field(description="Of rows of vectors.")
    scores: Scores | None = Field(default=None, description="Of scored pairs.")
    overlap: Overlap | None = Field(description="Of the evaluation file that was given, with this one.")

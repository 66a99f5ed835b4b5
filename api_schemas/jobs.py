"""Fine-tuning jobs: what to train, how it goes, and what came of it."""

from typing import Annotated, Any, Literal, get_args

from pydantic import Field

from api_schemas.base import Auto, PrintableStr, RequestModel, ResponseModel
from api_schemas.errors import ErrorDetail
from api_schemas.methods import Method

JobStatus = Literal["validating_files", "queued", "running", "paused", "succeeded", "failed", "cancelled"]
Priority = Literal["low", "normal", "high"]
#: States that a job never leaves.
ENDED: frozenset[JobStatus] = frozenset({"succeeded", "failed", "cancelled"})
UNENDED: frozenset[JobStatus] = frozenset(get_args(JobStatus)) - ENDED


class OpenAIHyperparameters(RequestModel):
    """The older place for hyperparameters, which OpenAI's clients still send."""

    n_epochs: Annotated[int, Field(ge=1, le=1000)] | Auto = "auto"
    batch_size: Annotated[int, Field(ge=2, le=65536)] | Auto = "auto"
    learning_rate_multiplier: Annotated[float, Field(gt=0)] | Auto = Field(
        default="auto", description="Multiplies the learning rate that auto stands for."
    )


class JobCreate(RequestModel):
    """A request to fine-tune `model` on `training_file`. Everything else has a default."""

    model: str = Field(description="What to start from: a base model's name, the id of a tuned model, or an alias.")
    training_file: str = Field(description="Id of an uploaded file of training rows.")
    validation_file: str | None = Field(
        default=None,
        description="Id of a file that the job is evaluated on, before and after; not trained on.",
    )
    method: Method = Field(default_factory=Method)
    hyperparameters: OpenAIHyperparameters | None = None
    suffix: PrintableStr | None = Field(
        default=None,
        min_length=1,
        max_length=64,
        pattern=r"^[A-Za-z0-9._-]+$",
        description="Part of the model's id.",
    )
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = Field(
        default=None, description="Fixes batches and dropout; 0 when not given."
    )
    priority: Priority = Field(
        default="normal",
        description="Which of the team's own jobs go first: each step up counts as a day of waiting. It doesn't move "
        "them before other teams' jobs, with which they take turns.",
    )
    metadata: (
        Annotated[
            dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]], Field(max_length=16)
        ]
        | None
    ) = Field(default=None, description="Up to 16 names, each of up to 64 characters, with values of up to 512.")
    integrations: Annotated[list[dict[str, Any]], Field(max_length=0)] | None = Field(
        default=None, description="None are supported; null and [] are accepted."
    )
    max_runtime_seconds: Annotated[int, Field(ge=1, le=10 * 365 * 24 * 3600)] | None = Field(
        default=None,
        description="How long its attempts may run, all together, before it fails. Waiting and preparing don't count.",
    )
    deadline: Annotated[int, Field(ge=1, le=253_402_300_799)] | None = Field(
        default=None, description="Unix time, seconds, by which the job must have ended. Then it fails, in any state."
    )


class Progress(ResponseModel):
    """How far a running job is, or a paused one was."""

    step: int
    total_steps: int
    loss: float | None = None
    pairs_per_second: float | None = None
    seconds_left: float | None = None


class Interruptions(ResponseModel):
    """How attempts have ended that did not end the job. Only crashes and kills are counted against it."""

    crashes: int = Field(description="Its process or its worker died, or was not heard of any more.")
    out_of_memory: int = Field(description="The kernel killed its process for lack of memory.")
    preemptions: int = Field(description="Its worker gave it back: it was told to stop, or PostgreSQL was away.")


class Job(ResponseModel):
    """A fine-tuning job, in OpenAI's shape, with some members of ours, such as `attempt` and `progress`."""

    id: str
    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    created_at: int = Field(description="Unix time, seconds.")
    started_at: int | None = None
    finished_at: int | None = None
    estimated_finish: int | None = None
    status: JobStatus
    attempt: int = Field(
        description="Counts from 1; whoever goes on from the last checkpoint does so under the next number."
    )
    model: str = Field(description="What it starts from; for an alias, the model that it stood for.")
    fine_tuned_model: str | None = None
    organization_id: str = Field(description="The team's id.")
    training_file: str
    validation_file: str | None = None
    result_files: list[str] = Field(default_factory=list)
    method: Method = Field(
        description="The method; `auto` of loss and hyperparameters is resolved once the files are prepared."
    )
    hyperparameters: dict[str, Any] = Field(description="n_epochs, batch_size and learning_rate_multiplier again.")
    seed: int
    priority: Priority
    queue_position: int | None = Field(
        default=None,
        description="Of a queued job: its place among the team's own queued jobs; 1 is the next. Other teams' jobs "
        "take turns with them.",
    )
    suffix: str | None = None
    metadata: dict[str, str] | None = None
    integrations: list[dict[str, Any]] = Field(default_factory=list)
    trained_tokens: int | None = None
    max_runtime_seconds: int | None = None
    deadline: int | None = None
    interruptions: Interruptions
    progress: Progress | None = None
    error: ErrorDetail | None = Field(default=None, description="Why it failed and what to do.")


class JobEvent(ResponseModel):
    """Something that happened to a job. `seq` counts from 1 without gaps."""

    id: str
    object: Literal["fine_tuning.job.event"] = "fine_tuning.job.event"
    created_at: int
    seq: int
    level: Literal["info", "warn", "error"]
    type: Literal["message", "metrics"]
    message: str
    data: dict[str, Any] | None = None


class CheckpointMetrics(ResponseModel):
    """What the step before a checkpoint measured."""

    step: int
    train_loss: float


class Checkpoint(ResponseModel):
    """A state that an unfinished job can go on from, in OpenAI's shape."""

    id: str
    object: Literal["fine_tuning.job.checkpoint"] = "fine_tuning.job.checkpoint"
    created_at: int
    fine_tuning_job_id: str
    step_number: int = Field(description="How many steps were taken.")
    metrics: CheckpointMetrics
    fine_tuned_model_checkpoint: str | None = Field(
        default=None, description="Always null: a checkpoint serves its job, and is gone when that has ended."
    )


class StepMetrics(ResponseModel):
    """What one training step measured."""

    step: int
    loss: float
    learning_rate: float
    grad_norm: float = Field(description="Of all gradients together, before clipping.")
    seconds: float = Field(description="Of the step itself: no loading, saving or reporting.")
    pairs_per_second: float = Field(description="Rows of the batch over the step's own seconds.")
    tokens_per_second: float
    positive_cosine: float | None = Field(default=None, description="Mean over the pairs that are alike.")
    negative_cosine: float | None = Field(default=None, description="Mean over the pairs that are not.")
    alignment: float | None = Field(
        default=None,
        description="Mean squared distance of the pairs that are alike, from 0 to 4 (Wang and Isola 2020).",
    )
    uniformity: float | None = Field(
        default=None,
        description="Of the batch's embeddings: 0 if they are one point, lower the more evenly they are spread (Wang "
        "and Isola 2020). Not measured at every step of a long training.",
    )
    effective_rank: float | None = Field(
        default=None,
        description="In how many directions the batch's embeddings extend (Roy and Vetterli 2007). Measured when "
        "uniformity is.",
    )
    padding: float = Field(
        default=0.0, description="Share of the encoder's tokens that stand for nothing; 0 for a packed encoder."
    )
    accuracy: float | None = Field(default=None, description="Share of anchors whose nearest text is alike.")
    temperature: float | None = Field(default=None, description="Of the loss at this step.")


class MetricsSummary(ResponseModel):
    """Over all steps: rates count training only, not loading, validation or saving."""

    steps: int = Field(description="How many there are; `data` may hold fewer of them.")
    pairs_per_second: float | None = None
    tokens_per_second: float | None = None


class Metrics(ResponseModel):
    """The steps of a job, each once, and their summary. Those taken again after a crash are the newest attempt's."""

    object: Literal["list"] = "list"
    data: list[StepMetrics]
    summary: MetricsSummary

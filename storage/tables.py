"""The rows. All but those of teams and of leaders belong to a team; `storage.database` filters by it."""

from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    DateTime,
    Double,
    ForeignKey,
    Identity,
    Index,
    MetaData,
    Text,
    UniqueConstraint,
    false,
    func,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from api_schemas.jobs import Priority
from api_schemas.models import Reads

# The clock is PostgreSQL's, everywhere: processes on several machines disagree about the time.
_NOW = func.clock_timestamp()


class Base(DeclarativeBase):
    """All tables. Constraints have fixed names, so that migrations can speak of them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012 — SQLAlchemy reads it from the class
        str: Text,
        datetime: DateTime(timezone=True),
        dict[str, Any]: JSONB(none_as_null=True),
        list[Any]: JSONB(none_as_null=True),
    }


class Team(Base):
    """Who owns things. There is one to begin with: `default`."""

    __tablename__ = "teams"

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=_NOW)
    # When a worker of each queue last took up something of the team's (`storage.scheduling`).
    gpu_turn_at: Mapped[datetime | None]
    cpu_turn_at: Mapped[datetime | None]


class TeamOwned:
    """Mixed into every table whose rows belong to a team."""

    # None until the session that adds the row fills in its own team.
    team_id: Mapped[str] = mapped_column(ForeignKey("teams.id", ondelete="RESTRICT"))


class ApiKey(TeamOwned, Base):
    """A key's digest. The key itself is shown once and never stored."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    digest: Mapped[str] = mapped_column(unique=True)
    hint: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=_NOW)
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]


class File(TeamOwned, Base):
    """An uploaded dataset. Its bytes are in the artifact store, under its id."""

    __tablename__ = "files"
    __table_args__ = (Index(None, "team_id", "created_at", "id"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    filename: Mapped[str]
    purpose: Mapped[str]
    bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str]
    status: Mapped[str]
    status_details: Mapped[str | None]
    format: Mapped[str | None]
    rows: Mapped[int | None]
    error_count: Mapped[int] = mapped_column(server_default="0")
    errors: Mapped[list[Any] | None]
    # What the API answers for /v1/files/{id}/report, as it is.
    report: Mapped[dict[str, Any] | None]
    # Beginnings that nobody gave back: of a file without a verdict, the deaths of who read it, and the one that reads.
    validations_begun: Mapped[int] = mapped_column(server_default="0")
    validation_started_at: Mapped[datetime | None]
    validation_bytes_read: Mapped[int | None] = mapped_column(BigInteger)
    created_at: Mapped[datetime] = mapped_column(server_default=_NOW)
    deleted_at: Mapped[datetime | None]


class Upload(TeamOwned, Base):
    """A large file that arrives in parts. Its status moves under a lock on its row (`storage.uploads`)."""

    __tablename__ = "uploads"
    __table_args__ = (Index(None, "status"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    filename: Mapped[str]
    purpose: Mapped[str]
    # What was declared; the parts must come to exactly this.
    bytes: Mapped[int] = mapped_column(BigInteger)
    status: Mapped[str]
    # What it was completed with and what came of it, so that completing it again gets the same answer.
    part_ids: Mapped[list[Any] | None]
    md5: Mapped[str | None]
    file_id: Mapped[str | None] = mapped_column(ForeignKey("files.id"))
    created_at: Mapped[datetime] = mapped_column(server_default=_NOW)
    expires_at: Mapped[datetime]


class UploadPart(TeamOwned, Base):
    """A part of a pending upload. Its bytes are in the artifact store, under the upload's id and their SHA-256."""

    __tablename__ = "upload_parts"
    __table_args__ = (Index(None, "upload_id"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    upload_id: Mapped[str] = mapped_column(ForeignKey("uploads.id"))
    bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=_NOW)


class Job(TeamOwned, Base):
    """A fine-tuning job. Its state moves by compare-and-set only (`storage.job_moves`)."""

    __tablename__ = "jobs"
    __table_args__ = (Index(None, "team_id", "created_at", "id"), Index(None, "state"))

    id: Mapped[str] = mapped_column(primary_key=True)
    state: Mapped[str]
    model: Mapped[str]
    training_file: Mapped[str] = mapped_column(ForeignKey("files.id"))
    validation_file: Mapped[str | None] = mapped_column(ForeignKey("files.id"))
    method: Mapped[dict[str, Any]]
    # Of the model it starts from: `texts` or `vectors`, and for texts how many tokens of each.
    reads: Mapped[Reads] = mapped_column(Text, server_default="texts")
    max_seq_length: Mapped[int | None]
    openai_hyperparameters: Mapped[dict[str, Any] | None]
    seed: Mapped[int] = mapped_column(BigInteger)
    suffix: Mapped[str | None]
    priority: Mapped[Priority] = mapped_column(Text, server_default="normal")
    # Its files are: while still in `validating_files` they are being prepared.
    validated: Mapped[bool] = mapped_column(server_default=false())
    # Beginnings that nobody gave back, as for files.
    preparations_begun: Mapped[int] = mapped_column(server_default="0")
    job_metadata: Mapped[dict[str, Any] | None]
    # Of a running job, whose worker then stops at a checkpoint and makes it `paused`.
    pause_asked: Mapped[bool] = mapped_column(server_default=false())
    progress: Mapped[dict[str, Any] | None]
    # What the API answers for /v1/fine_tuning/jobs/{id}/evaluation, as it is.
    evaluation: Mapped[dict[str, Any] | None]
    error: Mapped[dict[str, Any] | None]
    fine_tuned_model: Mapped[str | None]
    trained_tokens: Mapped[int | None] = mapped_column(BigInteger)
    # Whether it has begun and, if it is queued again, nobody but its worker's end is the reason: then it goes first.
    in_turn: Mapped[bool] = mapped_column(server_default=false())
    # Which attempt may write, and who works on it under a Lease.
    attempt: Mapped[int] = mapped_column(server_default="0")
    worker_id: Mapped[str | None]
    # Of an attempt that a worker of before there was a table of leases has begun; else null.
    lease_expires_at: Mapped[datetime | None]
    # How attempts have ended that did not end the job: died, died for lack of memory, given back by their worker.
    crashes: Mapped[int] = mapped_column(server_default="0")
    oom_kills: Mapped[int] = mapped_column(server_default="0")
    preemptions: Mapped[int] = mapped_column(server_default="0")
    # The furthest step after which an attempt has died, and how many have died since one got further than that.
    died_after_step: Mapped[int | None]
    deaths_in_place: Mapped[int] = mapped_column(server_default="0")
    # How long attempts that have ended ran, and how long all together may; when the job must have ended.
    ran_seconds: Mapped[float] = mapped_column(Double, server_default="0")
    max_runtime_seconds: Mapped[int | None]
    deadline_at: Mapped[datetime | None]
    # The last event's number. Taking the next by UPDATE makes numbers gapless and writers queue up.
    last_seq: Mapped[int] = mapped_column(server_default="0")
    created_at: Mapped[datetime] = mapped_column(server_default=_NOW)
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]


class Lease(TeamOwned, Base):
    """The right to work on a running job, until `expires_at` (`storage.leases`).

    Apart from the job, whose row others lock for longer than a lease can wait.
    """

    __tablename__ = "leases"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    attempt: Mapped[int]
    worker_id: Mapped[str]
    # What a renewal adds: said by the worker that took it, so that nobody else need agree on it.
    seconds: Mapped[float] = mapped_column(Double)
    started_at: Mapped[datetime] = mapped_column(server_default=_NOW)
    expires_at: Mapped[datetime]


class LeaderTerm(Base):
    """How long one process led the reconcilers, or may yet. The newest term counts (`storage.leadership`)."""

    __tablename__ = "leader_terms"

    term: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    holder: Mapped[str]
    started_at: Mapped[datetime] = mapped_column(server_default=_NOW)
    ends_at: Mapped[datetime]


class JobEvent(TeamOwned, Base):
    """Something that happened to a job."""

    __tablename__ = "job_events"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True)
    attempt: Mapped[int]
    level: Mapped[str]
    type: Mapped[str]
    message: Mapped[str]
    data: Mapped[dict[str, Any] | None]
    # Of its writer's making, so that an event is known again if it is written twice.
    key: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=_NOW)


class JobMetrics(TeamOwned, Base):
    """What one training step of one attempt measured."""

    __tablename__ = "job_metrics"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    attempt: Mapped[int] = mapped_column(primary_key=True)
    step: Mapped[int] = mapped_column(primary_key=True)
    values: Mapped[dict[str, Any]]


class Model(TeamOwned, Base):
    """A tuned encoder. Its folder is in the artifact store, complete before this row is."""

    __tablename__ = "models"
    __table_args__ = (Index(None, "team_id", "created_at", "id"), UniqueConstraint("job_id"))

    id: Mapped[str] = mapped_column(primary_key=True)
    base_model: Mapped[str]
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    training_file: Mapped[str]
    artifact: Mapped[str]
    # The id of the split it was evaluated on.
    evaluation_split: Mapped[str | None]
    weights_sha256: Mapped[str]
    reads: Mapped[Reads] = mapped_column(Text, server_default="texts")
    dimension: Mapped[int]
    max_seq_length: Mapped[int | None]
    # What was found wrong with its folder; until that is mended it is not served.
    damage: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=_NOW)
    deleted_at: Mapped[datetime | None]


class Alias(TeamOwned, Base):
    """A name that the team gives to a model. PostgreSQL tells of its changes, as of those of keys and models."""

    __tablename__ = "aliases"

    team_id: Mapped[str] = mapped_column(ForeignKey("teams.id", ondelete="RESTRICT"), primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    # A base model's name or a tuned model's id, never another alias.
    model: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=_NOW)
    updated_at: Mapped[datetime] = mapped_column(server_default=_NOW)


class OutboxMessage(TeamOwned, Base):
    """A task to hand to the queue, written in the commit that makes it necessary."""

    __tablename__ = "outbox"

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    queue: Mapped[str]
    task: Mapped[str]
    arguments: Mapped[list[Any]]
    created_at: Mapped[datetime] = mapped_column(server_default=_NOW)


class KeptAnswer(TeamOwned, Base):
    """What a request got that created something, kept for whoever sends it again (`storage.idempotency`)."""

    __tablename__ = "kept_answers"
    __table_args__ = (
        UniqueConstraint("team_id", "key"),
        Index(None, "team_id", "fingerprint"),
        Index(None, "created_at"),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    # What the client calls the request; None for a client that only counts how often it has sent it.
    key: Mapped[str | None]
    fingerprint: Mapped[str]
    # The last of its attempts that got this answer; None with a key.
    retry: Mapped[int | None]
    body: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=_NOW)

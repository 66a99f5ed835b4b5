"""Rows for storage tests, made the way the API and the workers make them."""

from typing import Any

from sqlalchemy import func, text
from sqlalchemy.orm import Session

from api_schemas.defaults import resolve
from api_schemas.jobs import ENDED, JobCreate
from api_schemas.methods import Method
from storage import attempts, files, job_history, jobs, preparations, teams, uploads
from storage.artifacts import StoredFile
from storage.database import Database
from storage.ids import new_id
from storage.tables import File, Job, JobEvent, Lease, Team, Upload
from tests.processes import until

TEAM = teams.DEFAULT_TEAM
OTHER_TEAM = "other"

USABLE = files.Verdict(usable=True, format="pairs", rows=20, error_count=0, errors=[], summary=None)
UNUSABLE = files.Verdict(
    usable=False, format=None, rows=0, error_count=1, errors=[{"row": 1}], summary="1 row was refused."
)


def add_team(database: Database, team_id: str = OTHER_TEAM) -> str:
    with database.session_across_teams() as session:
        session.add(Team(id=team_id, name=team_id))
    return team_id


def add_file(database: Database, *, team: str = TEAM, verdict: files.Verdict | None = USABLE) -> str:
    """An uploaded file, validated unless `verdict` is None."""
    file_id = new_id("file")
    stored = StoredFile(10, f"sha256-of-{file_id}")
    with database.session(team) as session:
        files.create(session, file_id, filename="rows.jsonl", purpose="fine-tune", stored=stored)
    if verdict is not None:
        with database.session_across_teams() as session:
            files.record_verdict(session, file_id, verdict)
    return file_id


def add_upload(database: Database, size: int) -> str:
    """A pending upload that was declared with `size` bytes."""
    with database.session(TEAM) as session:
        return uploads.create(session, filename="rows.jsonl", purpose="fine-tune", size=size).id


def add_part(database: Database, upload_id: str, size: int, sha256: str) -> str:
    with database.session(TEAM) as session:
        return uploads.add_part(session, upload_id, StoredFile(size, sha256)).id


def end_time_of(database: Database, upload_id: str) -> None:
    """Move the upload's expiry into the past, which is what waiting for it would do."""
    with database.session_across_teams() as session:
        upload = session.get_one(Upload, upload_id)
        upload.expires_at = func.clock_timestamp() - text("interval '1 second'")


def add_job(database: Database, state: str = "queued", *, team: str = TEAM, **request: Any) -> str:
    """A job that has come to `state` by the moves that lead there; from `queued` on its attempt is 1."""
    if "training_file" not in request:
        verdict = None if state == "validating_files" else USABLE
        request["training_file"] = add_file(database, team=team, verdict=verdict)
    asked = JobCreate(model="tiny/bert", **request)
    with database.session(team) as session:
        training = files.get(session, asked.training_file)
        validation = files.get(session, asked.validation_file) if asked.validation_file else None
        job_id = jobs.create(session, asked, training, validation, max_seq_length=48).id
    if state != "validating_files":
        prepare(database, job_id)
    with database.session_across_teams() as session:
        if state == "running" or state in ENDED - {"cancelled"}:
            assert attempts.start(session, job_id, 1, "worker-1") is not None
        if state == "succeeded":
            succeed(session, job_id)
        elif state == "failed":
            attempts.fail(session, job_id, 1, "out_of_memory", "Memory ran out.")
        elif state == "cancelled":
            jobs.cancel(session, job_id)
        elif state == "paused":
            jobs.pause(session, job_id)
    return job_id


def prepare(database: Database, job_id: str) -> None:
    """End a job's preparation well, as the task does that tokenizes its files."""
    with database.session_across_teams() as session:
        row = jobs.get(session, job_id)
        preparations.finish(session, job_id, resolve(Method(**row.method), None, rows=20, max_seq_length=48))


def is_in_preparation(database: Database, job_id: str) -> bool:
    with database.session_across_teams() as session:
        return preparations.unprepared(session, job_id) is not None


def succeed(session: Session, job_id: str, attempt: int = 1) -> None:
    attempts.succeed(
        session, job_id, attempt, base_model="tiny/bert", weights_sha256="00", dimension=32, max_seq_length=48,
        trained_tokens=100,
    )  # fmt: skip


def job_of(database: Database, job_id: str) -> Job:
    with database.session_across_teams() as session:
        return jobs.get(session, job_id)


def file_of(database: Database, file_id: str) -> File:
    with database.session_across_teams() as session:
        return files.get(session, file_id)


def events_of(database: Database, job_id: str) -> list[JobEvent]:
    with database.session_across_teams() as session:
        rows, more = job_history.events(session, job_id, after_seq=None, limit=1000, newest_first=False)
    assert not more
    return list(rows)


def lease_of(database: Database, job_id: str) -> Lease | None:
    with database.session_across_teams() as session:
        return session.get(Lease, job_id)


def expire_lease(database: Database, job_id: str) -> None:
    """Move the lease's end into the past, which is what waiting for it would do. From now on it is one of a second."""
    with database.session_across_teams() as session:
        lease = session.get_one(Lease, job_id)
        lease.seconds = 1.0
        lease.expires_at = func.clock_timestamp() - text("interval '1 second'")
    until(lambda: _server_has_run(database, seconds=1.0))


def _server_has_run(database: Database, *, seconds: float) -> bool:
    """Whether PostgreSQL was started so long ago; until then, it takes no lease for ended that it knew before."""
    with database.session_across_teams() as session:
        return bool(
            session.scalar(text(f"SELECT clock_timestamp() > pg_postmaster_start_time() + interval '{seconds} s'"))
        )


def rescue(database: Database) -> int:
    """Give the jobs whose leases have ended to others, as the reconciler does. Returns how many there were."""
    with database.session_across_teams() as session:
        expired = attempts.expired(session)
    rescued = 0
    for job_id, attempt in expired:
        with database.session_across_teams() as session:
            rescued += attempts.rescue(session, job_id, attempt)
    return rescued

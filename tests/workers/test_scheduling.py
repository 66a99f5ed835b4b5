"""Whose jobs a real worker takes; `tests/storage/test_scheduling.py` has the cases."""

from __future__ import annotations

import subprocess
import sys

from service.settings import ServiceSettings
from storage import jobs, queue
from storage.database import Database
from tests.storage.rows import TEAM, add_file, add_job, add_team, job_of

# A worker whose trainings end at once, and badly, after which it takes the next.
WORK_ON_TWO = """
import sys
from rq.serializers import JSONSerializer
from storage import queue
from storage.processes import start_child
from workers import tasks
from workers.worker import LikenessWorker

tasks._start_training = lambda *_: start_child(["true"], new_group=False)
worker = LikenessWorker(["gpu"], connection=queue.connect(sys.argv[1]), serializer=JSONSerializer)
worker.work(burst=True, max_jobs=2)
"""


def test_a_worker_does_another_teams_one_job_before_the_rest_of_a_teams_many(
    settings: ServiceSettings, database: Database
) -> None:
    other = add_team(database)
    file_id = add_file(database)
    many = [add_job(database, training_file=file_id) for _ in range(10)]
    one = add_job(database, team=other)
    with database.session(TEAM) as session:
        jobs.cancel(session, many[0])  # whose message is the first
    with queue.connect(settings.required_redis_url) as redis:
        queue.dispatch(database, redis)
        worker = [sys.executable, "-c", WORK_ON_TWO, settings.required_redis_url]
        subprocess.run(worker, check=True, capture_output=True, timeout=300)

        assert redis.llen("rq:queue:gpu") == 9  # one more than there are jobs: that of the cancelled one
    assert [job_of(database, job_id).state for job_id in (*many, one)] == [
        "cancelled", "failed", *["queued"] * 8, "failed"
    ]  # fmt: skip

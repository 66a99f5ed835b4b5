"""Streams of events that break: nothing is lost or told twice, whoever goes on with them and wherever."""

import json
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import pytest
from openai import Stream
from pydantic import SecretStr

from service.settings import ServiceSettings
from storage import attempts, jobs
from storage.database import Database
from tests.installation import PAIRS, Installation, running_installation
from tests.processes import until
from tests.proxies import PostgresProxy, running
from tests.service.event_reader import Event, reading
from tests.storage.rows import TEAM

STREAM = "/fine_tuning/jobs/{}/events/stream"


@pytest.fixture
def api_settings(settings: ServiceSettings) -> ServiceSettings:
    return settings.model_copy(update={"role": "api"})


@pytest.fixture
def api(api_settings: ServiceSettings) -> Iterator[Installation]:
    with running_installation(api_settings) as installation:
        yield installation


def _running_job(installation: Installation) -> str:
    """The id of a job that somebody works on."""
    job = installation.create_job(installation.upload(PAIRS))
    with installation.database.session_across_teams() as session:
        assert attempts.start(session, job.id, 1, "worker") is not None
    return job.id


def _say(database: Database, job_id: str, *messages: str) -> None:
    """Events of the job's attempt, in one commit."""
    with database.session_across_teams() as session:
        for message in messages:
            attempts.record(session, job_id, 1, message)


def _end(database: Database, job_id: str) -> None:
    with database.session(TEAM) as session:
        jobs.cancel(session, job_id)


def _listed(installation: Installation, job_id: str) -> list[Any]:
    """All events of a job, oldest first, as its list tells them."""
    return installation.request("GET", f"/v1/fine_tuning/jobs/{job_id}/events?limit=1000").json()["data"][::-1]


def _follow_through(apis: list[Installation], job_id: str, seed: int) -> list[Event]:
    """What a reader gets whose connection breaks again and again, and which then asks any of the processes."""
    choose = random.Random(seed)
    events: list[Event] = []
    while not events or events[-1].name != "done":
        last = events[-1].id if events else "0"
        with reading(choose.choice(apis), job_id, after=last) as reader:
            events += reader.events(at_most_bytes=choose.randrange(1, 6000))
    return events


def test_readers_whose_connections_break_get_everything_once_in_order_from_several_processes(
    api: Installation, api_settings: ServiceSettings
) -> None:
    job_id = _running_job(api)
    with running_installation(api_settings) as other, ThreadPoolExecutor(4) as readers:
        followed = [readers.submit(_follow_through, [api, other], job_id, seed) for seed in range(4)]
        for number in range(100):
            _say(api.database, job_id, *(f"event {number}.{part} " + "x" * (number * 7 % 90) for part in range(3)))
        _end(api.database, job_id)
        streams = [following.result() for following in followed]
    listed = _listed(api, job_id)
    assert [event["seq"] for event in listed] == list(range(1, len(listed) + 1))
    assert len(listed) > 300
    for *events, done in streams:
        assert [json.loads(event.data) for event in events] == listed
        assert [int(event.id) for event in events] == [event["seq"] for event in listed]
        assert json.loads(done.data)["status"] == "cancelled"


def test_a_stream_goes_on_where_it_was_when_the_service_was_started_again(api_settings: ServiceSettings) -> None:
    with running_installation(api_settings) as before:
        job_id = _running_job(before)
        _say(before.database, job_id, "one")
        with reading(before, job_id) as reader:
            events = reader.events()
            seen = [next(events)]
            while json.loads(seen[-1].data)["message"] != "one":
                seen.append(next(events))
            before.service.drain.begin()
            seen += events
            assert reader.has_ended
            assert reader.comments == [f"the service stops; connect again with Last-Event-ID: {seen[-1].id}"]
    with running_installation(api_settings) as after:
        _say(after.database, job_id, "two")
        _end(after.database, job_id)
        with reading(after, job_id, after=seen[-1].id) as reader:
            *rest, done = reader.events()
        assert [json.loads(event.data) for event in [*seen, *rest]] == _listed(after, job_id)
        assert done.name == "done"


def test_a_stream_outlasts_its_database(api_settings: ServiceSettings) -> None:
    postgres = PostgresProxy(api_settings.required_database_url)
    direct = Database(api_settings.required_database_url, pool_size=1)
    changes = {"database_url": SecretStr(postgres.url), "heartbeat_seconds": 0.05}
    with running(postgres), running_installation(api_settings.model_copy(update=changes)) as api:
        job_id = _running_job(api)
        with reading(api, job_id) as reader:
            events = reader.events()
            seen = [next(events)]
            postgres.refuse()
            until(lambda: api.request("GET", "/v1/files").status_code == 503)
            _say(direct, job_id, "meanwhile")
            _end(direct, job_id)
            postgres.recover()
            seen += events
        assert reader.has_ended
        assert [json.loads(event.data) for event in seen[:-1]] == _listed(api, job_id)
    direct.dispose()


def _say_once_heard(api: Installation, job_id: str, comments: list[str], number: int) -> None:
    until(lambda: len(comments) >= number)
    _say(api.database, job_id, f"after {number} signs of life")


def test_signs_of_life_disturb_neither_openais_stream_nor_one_that_keeps_to_the_standard(
    api_settings: ServiceSettings,
) -> None:
    with running_installation(api_settings.model_copy(update={"heartbeat_seconds": 0.05})) as api:
        job_id = _running_job(api)
        count = len(_listed(api, job_id))
        stream = api.openai.get(STREAM.format(job_id), cast_to=object, stream=True, stream_cls=Stream[object])
        with stream, reading(api, job_id) as reader, ThreadPoolExecutor(1) as writer:
            events = reader.events()
            ours, theirs = list(islice(events, count)), list(islice(stream, count))
            for _ in range(3):
                said = writer.submit(_say_once_heard, api, job_id, reader.comments, len(reader.comments) + 3)
                ours.append(next(events))
                theirs.append(next(stream))
                said.result()
            _end(api.database, job_id)
            ours += events
            theirs += stream
        assert len(reader.comments) >= 9
        assert theirs == [json.loads(event.data) for event in ours]
        assert theirs[:-1] == _listed(api, job_id)

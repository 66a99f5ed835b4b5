"""The application: middleware, routers, and what they share."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, FastAPI, Security
from fastapi.security import HTTPBearer
from fastapi_offline import FastAPIOffline
from redis.backoff import NoBackoff
from redis.retry import Retry

from service.catalogue import Catalogue
from service.dispatcher import Dispatcher
from service.drain import Drain, DrainGate
from service.errors import ERROR_RESPONSES, install_error_handlers
from service.keys import KeyGate
from service.metrics import Metrics
from service.routes import aliases, files, health, job_events, jobs, metrics, models, uploads
from service.settings import ServiceSettings
from service.state import ServiceState
from service.telemetry import RequestTelemetry
from storage import queue
from storage.artifacts import ArtifactStore
from storage.database import Database
from storage.model_folders import ModelFolders

_DESCRIPTION = """
Teach an encoder what *alike* means to you, then use it.

Upload a dataset, fine-tune an encoder on it with the NT-Xent loss, and embed with the result. The routes under
`/v1` are those of OpenAI's API where it has them, so its clients work unmodified.
"""


def create_app(settings: ServiceSettings) -> FastAPI:
    """The application of one role. Raises NoServersError when DATABASE_URL or REDIS_URL is missing."""
    state = _build_state(settings)
    # The documentation page's scripts come with it: it works on a network without the internet.
    app = FastAPIOffline(
        title="Likeness",
        version="0.1.0",
        description=_DESCRIPTION,
        redoc_url=None,
        lifespan=_lifespan,
        responses=ERROR_RESPONSES,
    )
    app.state.service = state
    for router, protected in _routers(state):
        app.include_router(router, dependencies=[Security(HTTPBearer(auto_error=False))] if protected else None)
    install_error_handlers(app)
    # The last added is the outermost: a request gets its id first, then whether it comes in time, and then its caller.
    app.add_middleware(KeyGate, find_caller=state.catalogue.caller)
    app.add_middleware(DrainGate, drain=state.drain)
    app.add_middleware(RequestTelemetry)
    return app


def _build_state(settings: ServiceSettings) -> ServiceState:
    database = Database(settings.required_database_url, pool_size=20, answer_seconds=settings.database_seconds)
    redis = queue.connect(settings.required_redis_url)
    # Trying again is for the reconciler; here it would only make its caller wait.
    redis.set_retry(Retry(NoBackoff(), 0))
    state = ServiceState(
        settings=settings,
        database=database,
        redis=redis,
        artifacts=ArtifactStore(settings.artifacts_dir),
        catalogue=Catalogue(database, settings),
        dispatcher=Dispatcher(database, redis),
        drain=Drain(unready_seconds=settings.unready_seconds, drain_seconds=settings.drain_seconds),
    )
    if settings.role != "api":
        # Here and not above: the API role has no torch.
        from service.inference.engine import InferenceEngine

        state.inference = InferenceEngine(settings, ModelFolders(state.database, state.artifacts))
    state.metrics = Metrics(state.inference, state.catalogue)
    return state


def _routers(state: ServiceState) -> list[tuple[APIRouter, bool]]:
    """The routers of a role, and whether they want a key."""
    routers: list[tuple[APIRouter, bool]] = [(health.router, False), (metrics.router, True)]
    if state.settings.role != "inference":
        resources = (files, uploads, jobs, job_events, models, aliases)
        routers += [(resource.router, True) for resource in resources]
    if state.inference is not None:
        from service.routes import embeddings, similarity, tei

        routers += [(embeddings.router, True), (similarity.router, True), (tei.health_router, False)]
        # Last, as `/tei/{model:path}` takes all that is below it.
        routers.append((tei.router, True))
    return routers


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
    state: ServiceState = app.state.service
    state.catalogue.start()
    yield {}
    if state.inference is not None:
        await state.inference.close()
    state.dispatcher.close()
    state.catalogue.close()
    state.redis.close()
    state.database.dispose()

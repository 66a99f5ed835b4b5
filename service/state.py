"""What every request may reach: the parts of the running process, made once by `service.app`."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

from anyio import CapacityLimiter
from fastapi import Depends, Request
from redis import Redis

from service.catalogue import Catalogue
from service.dispatcher import Dispatcher
from service.drain import Drain
from service.metrics import Metrics
from service.settings import ServiceSettings
from storage.artifacts import ArtifactStore
from storage.database import Database

if TYPE_CHECKING:
    # The API role must not import torch; this name is for the type checker.
    from service.inference.engine import InferenceEngine


@dataclass
class ServiceState:
    """The parts. `inference` is None in a process without the inference role."""

    settings: ServiceSettings
    database: Database
    redis: Redis
    artifacts: ArtifactStore
    catalogue: Catalogue
    metrics: Metrics = field(init=False)
    dispatcher: Dispatcher
    drain: Drain
    #: Threads that may look for news of followed jobs at a time: few, so that all others are left for requests.
    followers: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(8))
    #: Connections that may hold the keys of long requests at a time.
    claims: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(8))
    #: Threads that may look whether the servers are there.
    checks: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(4))
    inference: "InferenceEngine | None" = None


def state_of(request: Request) -> ServiceState:
    """The state of the application a request came to."""
    state: ServiceState = request.app.state.service
    return state


#: What a route declares to reach the parts.
StateDep = Annotated[ServiceState, Depends(state_of)]

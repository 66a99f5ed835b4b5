"""What every request may reach: the parts of the running process, made once by `service.app`."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from fastapi import Depends, Request
from redis import Redis

from service.settings import ServiceSettings
from storage.artifacts import ArtifactStore
from storage.database import Database

if TYPE_CHECKING:
    # The API role must not import torch; this name is for the type checker.
    from service.inference.engine import InferenceEngine


@dataclass
class ServiceState:
    """The parts. `inference` is None in a process without the inference role; `stopping` once it drains."""

    settings: ServiceSettings
    database: Database
    redis: Redis
    artifacts: ArtifactStore
    inference: "InferenceEngine | None" = None
    stopping: bool = False


def state_of(request: Request) -> ServiceState:
    """The state of the application a request came to."""
    state: ServiceState = request.app.state.service
    return state


#: What a route declares to reach the parts.
StateDep = Annotated[ServiceState, Depends(state_of)]

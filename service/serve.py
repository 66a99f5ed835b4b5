"""Run the application under uvicorn, with the project's own protocol and a clean end."""

import os
import signal
import sys
from types import FrameType

import structlog
import uvicorn

from service.app import create_app
from service.http_protocol import StrictHTTPProtocol
from service.settings import ServiceSettings
from service.state import ServiceState
from service.telemetry import configure_logging
from storage.settings import NoServersError

log = structlog.get_logger("likeness.serve")


class _Server(uvicorn.Server):
    """uvicorn's server, which tells the application that it is about to stop.

    Streams that would go on for hours end by themselves then, and don't hold the drain up.
    """

    def __init__(self, config: uvicorn.Config, state: ServiceState) -> None:
        super().__init__(config)
        self._state = state

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._state.stopping = True
        super().handle_exit(sig, frame)


def serve(settings: ServiceSettings) -> int:
    """Serve until SIGTERM or SIGINT, then drain. Returns the process' exit code."""
    # Read when torch is imported. Threads that spin while they wait are ruinous beside a training on the same cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    configure_logging(settings.log_level)
    try:
        app = create_app(settings.with_running_servers())
    except NoServersError as error:
        log.error("service_not_started", reason=str(error))
        return 2
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=StrictHTTPProtocol,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=settings.drain_seconds,
    )
    log.info("service_starting", host=settings.host, port=settings.port, role=settings.role)
    server = _Server(config, app.state.service)
    server.run()
    log.info("service_stopped")
    return 0 if server.started else 1


if __name__ == "__main__":
    # uvicorn handles SIGINT itself; until it does, a Ctrl-C is no reason for a traceback.
    signal.signal(signal.SIGINT, lambda *_: sys.exit(130))
    sys.exit(serve(ServiceSettings()))

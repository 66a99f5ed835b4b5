"""What a search for a temperature found: each trial, and whether it mattered."""

from typing import Any

from rich import box
from rich.table import Table

from service.demo.session import Session


def tell_search(session: Session, job_id: str, model: str) -> None:
    """Print the trials of a job that has ended."""
    session.step("See whether the temperature matters", f"GET /v1/fine_tuning/jobs/{job_id}/evaluation")
    evaluation: Any = session.client.get(f"/fine_tuning/jobs/{job_id}/evaluation", cast_to=object)
    search = evaluation["search"]
    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("trial", "temperature", search["metric"], "95 % interval", "steps", ""):
        table.add_column(heading, justify="right")
    for trial in sorted(search["trials"], key=lambda each: each["choices"]["temperature"]):
        table.add_row(*_cells(trial, is_chosen=trial["number"] == search["chosen"]))
    session.console.print(table)
    session.say(search["said"], style="green")
    session.say(f"The curve is search.svg in the model's folder: GET /v1/models/{model}/download")


def _cells(trial: dict[str, Any], *, is_chosen: bool) -> list[str]:
    metric = "failed" if trial["metric"] is None else f"{trial['metric']:.3f}"
    interval = "" if trial["low"] is None else f"{trial['low']:.3f} … {trial['high']:.3f}"
    note = "chosen" if is_chosen else "given up" if trial["pruned"] else ""
    return [str(trial["number"]), f"{trial['choices']['temperature']:.3g}", metric, interval, str(trial["steps"]), note]

"""What the command line makes of a command, without running it."""

from typing import Any

from typer.main import get_command

from service.cli import app
from service.settings import ServiceSettings
from storage.queue import TASKS


def parse(arguments: list[str]) -> dict[str, Any]:
    """The options and arguments that `likeness ARGUMENTS` sets. Raises what the command line would complain with."""
    command: Any = get_command(app)
    name = "likeness"
    rest = list(arguments)
    while hasattr(command, "commands") and rest:
        name = rest.pop(0)
        command = command.commands[name]
    given: dict[str, Any] = {} if hasattr(command, "commands") else command.make_context(name, rest).params
    if given.get("role") is not None:
        ServiceSettings(role=given["role"])
    if given.get("queue") is not None:
        assert given["queue"] in TASKS.values(), f"there is no queue {given['queue']}"
    return given

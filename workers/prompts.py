"""Which prompts a job's texts are read with."""

from __future__ import annotations

from pathlib import Path

from api_schemas.jobs import ModelOptions
from encoders.prompts import Prompts


def prompts_asked(options: ModelOptions) -> Prompts | None:
    """Those that the job states; None where it leaves them to its model."""
    return None if options.prompts is None else Prompts({str(name): text for name, text in options.prompts.items()})


def prompts_of(options: ModelOptions, folder: Path) -> Prompts:
    """Those of the job, or else those of the model in `folder`. Raises UnsafeFolderError."""
    asked = prompts_asked(options)
    return Prompts.of_folder(folder) if asked is None else asked

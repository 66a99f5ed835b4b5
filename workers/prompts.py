"""Which prompts a job's texts are read with."""

from __future__ import annotations

from pathlib import Path

from api_schemas.methods import ModelOptions
from encoders.prompts import Prompts
from storage.tables import Job


def prompts_asked(options: ModelOptions) -> Prompts | None:
    """Those that the job states; None where it leaves them to its model."""
    return None if options.prompts is None else Prompts({str(name): text for name, text in options.prompts.items()})


def prompts_of(job: Job, options: ModelOptions, folder: Path | None) -> Prompts | None:
    """Those of `options`, or else those of the job's model in `folder`; None for vectors. Raises UnsafeFolderError."""
    if job.reads == "vectors" or folder is None:
        return None
    asked = prompts_asked(options)
    return Prompts.of_folder(folder) if asked is None else asked

"""`likeness verify`: what an operator runs after a disk has been full, has failed, or was restored."""

import sys
from itertools import chain
from pathlib import Path
from typing import Annotated

import typer

from encoders import registry
from encoders.errors import EncoderError
from service.settings import ServiceSettings
from storage.artifacts import ArtifactStore
from storage.database import Database
from storage.verification import Finding, Verification


def verify(
    data_dir: Annotated[Path | None, typer.Option(help="Where files and models lie. [default: likeness-data]")] = None,
) -> None:
    """Read everything that is stored, and say what is damaged and what to do about it.

    Holds files, models and checkpoints against their checksums, while the service runs or after it was restored. A
    model that is damaged is withdrawn, one that was restored is served again. Ends with 0 if all is well, else 1.
    """
    settings = ServiceSettings() if data_dir is None else ServiceSettings(data_dir=data_dir)
    settings = settings.with_running_servers()
    database = Database(settings.required_database_url, pool_size=1)
    try:
        sys.exit(_told(settings, database))
    finally:
        database.dispose()


def _told(settings: ServiceSettings, database: Database) -> int:
    verification = Verification(database, ArtifactStore(settings.artifacts_dir))
    count = 0
    for finding in chain(verification.findings(), _base_models(settings.base_models_dir)):
        count += 1
        typer.echo(f"{finding.kind} {finding.name}: {finding.what}\n    {finding.remedy}")
    counts = sorted(verification.looked_at.items())
    looked_at = ", ".join(f"{number} {kind}{'s' if number > 1 else ''}" for kind, number in counts) or "nothing"
    typer.echo(f"Looked at {looked_at}: {f'{count} damaged' if count else 'all is well'}.")
    return 1 if count else 0


def _base_models(base_models_dir: Path | None) -> list[Finding]:
    """The base models whose weights are here, and aren't those promised."""
    return [
        Finding("base model", name, str(error), "Install its weights again.")
        for name, base in registry.available(base_models_dir).items()
        if base.weights_sha256 is not None
        for error in _wrong_weights(name, base.weights_sha256, base_models_dir)
    ]


def _wrong_weights(name: str, promised: str, base_models_dir: Path | None) -> list[Exception]:
    try:
        folder = registry.locate(name, base_models_dir)
    except EncoderError:
        return []  # not installed here
    try:
        registry.verify_weights(folder, promised)
    except (EncoderError, OSError) as error:
        return [error]
    return []

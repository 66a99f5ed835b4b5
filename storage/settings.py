"""Where things are kept. Read from the environment, or from a `.env` file in the working directory."""

import json
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from storage.processes import is_alive


class StorageSettings(BaseSettings):
    """What every process of an installation must agree on."""

    model_config = SettingsConfigDict(env_prefix="LIKENESS_", env_file=".env", extra="ignore", populate_by_name=True)

    database_url: SecretStr | None = Field(
        default=None,
        validation_alias="DATABASE_URL",
        description="PostgreSQL with pgvector, as postgresql://user:password@host/name. "
        "Not set: `likeness up` runs its own, in the data directory.",
    )
    redis_url: SecretStr | None = Field(
        default=None,
        validation_alias="REDIS_URL",
        description="Valkey or Redis, as redis://host:6379/0, rediss:// or unix://. "
        "Not set: `likeness up` runs its own, in the data directory.",
    )
    data_dir: Path = Field(
        default=Path("likeness-data"),
        description="Uploaded files, tuned models and, when embedded, the databases. "
        "Every process must see the same directory.",
    )
    base_models_dir: Path | None = Field(
        default=None,
        description="More base models: folders of sentence-transformers or transformers at ORGANISATION/NAME below it.",
    )
    derived_max_bytes: int = Field(
        default=50 * 1024**3,
        ge=0,
        description="How large the tokenized datasets, which can be made again, may grow; the least recently used "
        "go first.",
    )
    deleted_model_seconds: float = Field(
        default=300.0,
        ge=0,
        description="How long a deleted model's files stay, for requests and downloads that still read them.",
    )
    tensorboard_days: float = Field(
        default=30.0, ge=0, description="How long what a training wrote for TensorBoard stays after its job's end."
    )
    training_processes: int | Literal["auto"] = Field(
        default="auto",
        description="In how many processes a worker trains a job, each on a GPU of its own: a number, or auto for as "
        "many as it sees GPUs, and one without any.",
    )
    lease_seconds: float = Field(
        default=45.0,
        ge=1,
        le=3600,
        description="How long a worker may be silent before its jobs are given to others.",
    )
    tick_seconds: float = Field(
        default=2.0, gt=0, le=4, description="How often the reconciler looks for what crashes left behind."
    )
    stop_seconds: float = Field(
        default=8.0,
        ge=0,
        description="How long a training may take to end its step and keep its state when its worker is told to stop. "
        "Then it is killed, and goes on from its last checkpoint elsewhere.",
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        default="INFO", description="DEBUG, INFO, WARNING or ERROR: the least that is worth a line in the log."
    )

    @field_validator("training_processes", mode="before")
    @classmethod
    def _is_auto_or_a_number(cls, value: Any) -> Any:
        if value == "auto" or (str(value).isdecimal() and int(value) >= 1):
            return value
        raise ValueError("it must be auto, or a number from 1 on")

    @property
    def artifacts_dir(self) -> Path:
        """Where uploaded files and tuned models lie."""
        return self.data_dir / "artifacts"

    @property
    def derived_dir(self) -> Path:
        """Where what can be made again from uploaded files lies."""
        return self.data_dir / "derived"

    @property
    def tensorboard_dir(self) -> Path:
        """Where trainings write their steps for TensorBoard, a folder for each job."""
        return self.data_dir / "tensorboard"

    @property
    def running_file(self) -> Path:
        """What `likeness up` writes while it runs: its pid and the addresses of its servers."""
        return self.data_dir / "running.json"

    @property
    def required_database_url(self) -> str:
        """The database's URL in clear. Raises NoServersError when there is none."""
        return self._required(self.database_url)

    @property
    def required_redis_url(self) -> str:
        """The queue's URL in clear. Raises NoServersError when there is none."""
        return self._required(self.redis_url)

    def _required(self, url: SecretStr | None) -> str:
        if url is None:
            raise NoServersError(self.data_dir)
        return url.get_secret_value()

    def with_running_servers(self) -> Self:
        """These settings, with missing URLs taken from the `likeness up` that runs on the data directory.

        Raises NoServersError when a URL is missing and nothing runs there.
        """
        if self.database_url and self.redis_url:
            return self
        try:
            running = json.loads(self.running_file.read_text())
        except (FileNotFoundError, ValueError):  # ValueError: it is being written
            raise NoServersError(self.data_dir) from None
        if not is_alive(running["pid"]):  # it was killed, and could not tidy up
            raise NoServersError(self.data_dir)
        return self.model_copy(
            update={
                "database_url": self.database_url or SecretStr(running["database_url"]),
                "redis_url": self.redis_url or SecretStr(running["redis_url"]),
            }
        )


class NoServersError(Exception):
    """There is neither a DATABASE_URL and REDIS_URL nor a running `likeness up` to take them from."""

    def __init__(self, data_dir: Path) -> None:
        super().__init__(
            "No servers to talk to: set DATABASE_URL and REDIS_URL, "
            f"or start `likeness up --data-dir {data_dir}` first."
        )

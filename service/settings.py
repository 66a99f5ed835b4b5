"""How the HTTP side runs. The environment's names are the fields' with `LIKENESS_` before them."""

from typing import Any, Literal

from pydantic import Field, SecretStr, field_validator

from storage.settings import StorageSettings


class ServiceSettings(StorageSettings):
    """What `likeness serve` and `likeness up` can be told, beside where things are kept."""

    host: str = Field(default="127.0.0.1", description="Address to listen on; 0.0.0.0 for every interface.")
    port: int = Field(default=8080, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    role: Literal["all", "api", "inference"] = Field(
        default="all",
        description="api: files, jobs and models, without torch. inference: embeddings and similarity. all: both.",
    )
    max_upload_bytes: int = Field(default=10 * 1024**3, ge=1, description="The largest file that may be uploaded.")
    max_jobs_per_team: int = Field(
        default=1000,
        ge=1,
        description="Jobs of one team that may be there without having ended; more are refused with a 429.",
    )
    model_memory_bytes: int = Field(
        default=4 * 1024**3,
        ge=1,
        description="How much memory the weights of loaded models may take; the least recently used go first. "
        "One model is loaded however large it is.",
    )
    pinned_models: list[str] = Field(
        default_factory=list, description="Names of models that stay in memory once they are loaded, as a JSON list."
    )
    mode: Literal["auto", "torch-fp32", "torch-bf16", "onnxruntime-fp32"] = Field(
        default="auto",
        description="How forward passes are computed: auto for what is fastest on this machine and agrees with "
        "torch-fp32, or one of torch-fp32, torch-bf16 and onnxruntime-fp32.",
    )
    forward_threads: int | Literal["auto"] = Field(
        default="auto", description="How many forward passes may run at once: a number, or auto for one a core, to 4."
    )
    vector_cache_bytes: int = Field(
        default=64 * 1024**2,
        ge=0,
        description="How much memory vectors of texts that were embedded before may take; 0 keeps none.",
    )
    shared_vectors_url: SecretStr | None = Field(
        default=None,
        description="A Valkey or Redis in which processes share such vectors, as redis://host:6379/1. Not that of the "
        "queue: it may fill up, and then has to forget (`maxmemory-policy allkeys-lru`). Not set: none are shared.",
    )
    shared_vectors_seconds: int = Field(
        default=86_400, ge=1, description="How long shared vectors are kept after they were made."
    )
    default_model: str = Field(
        default="sentence-transformers/all-MiniLM-L6-v2",
        description="The model of the routes that clients of text-embeddings-inference use, which name none.",
    )
    tokens_per_batch: int = Field(default=4096, ge=1, description="Tokens that one forward pass may hold.")
    queued_tokens: int = Field(
        default=1_000_000,
        ge=1,
        description="Tokens that may wait for a forward pass before requests get a 429.",
    )
    queue_seconds: float = Field(
        default=1.0,
        gt=0,
        description="How long a request may have to wait for its first forward pass; one that would have to wait "
        "longer gets a 429.",
    )
    database_seconds: float = Field(
        default=2.0,
        gt=0,
        description="How long a request waits for an answer of the database before it gets a 503.",
    )
    heartbeat_seconds: float = Field(
        default=15.0,
        gt=0,
        description="How long a stream of events is silent before it gives a sign of life.",
    )
    unready_seconds: float = Field(
        default=1.0,
        ge=0,
        description="How long requests are still taken after the service is asked to stop; /readyz says no meanwhile, "
        "so that balancers can turn to another process.",
    )
    drain_seconds: int = Field(
        default=20,
        ge=0,
        description="How long requests in flight may take after that.",
    )

    @field_validator("forward_threads", mode="before")
    @classmethod
    def _is_auto_or_threads(cls, value: Any) -> Any:
        if value == "auto" or (str(value).isdecimal() and int(value) >= 1):
            return value
        raise ValueError("it must be auto, or a number from 1 on")

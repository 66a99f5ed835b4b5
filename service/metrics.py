"""What Prometheus reads at /metrics: under the names that dashboards for text-embeddings-inference ask for, and ours.

Rates are counters of the whole process; what the engine counts itself is read when somebody asks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector
from starlette.requests import ClientDisconnect

from api_schemas.errors import LikenessError

if TYPE_CHECKING:
    # The API role must not import torch; these names are for the type checker.
    from service.inference.engine import InferenceEngine, Timings

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_SIZES = tuple(float(2**power) for power in range(13))
_TOKENS = tuple(float(2**power) for power in range(17))
#: What text-embeddings-inference calls a failure, by our codes; all others are its "validation".
_FAILURES = {
    "rate_limit_exceeded": "overloaded",
    "model_output_invalid": "inference",
    "forward_lost": "inference",
    "weights_unavailable": "inference",
    "artifact_corrupt": "inference",
    "request_deadline_exceeded": "overloaded",
}


class Counts(Protocol):
    """What remembers names and keys."""

    hits: int
    misses: int


class Metrics:
    """The numbers of one process."""

    def __init__(self, engine: InferenceEngine | None = None, names: Counts | None = None) -> None:
        self._registry = CollectorRegistry()
        self.requests = {"single": 0, "batch": 0}
        self.successes = {"single": 0, "batch": 0}
        self.failures: dict[str, int] = {}
        self.texts = 0
        self._durations = {
            part: Histogram(f"te_request_{name}", help_, registry=self._registry, buckets=_SECONDS)
            for part, name, help_ in (
                ("total", "duration", "Seconds from a request's arrival in the queue to its vectors"),
                ("tokenize", "tokenization_duration", "Seconds in which a request's texts were tokenized"),
                ("queue", "queue_duration", "Seconds until a request's first forward pass"),
                ("forward", "inference_duration", "Seconds from a request's first forward pass to the end of its last"),
            )
        }
        self._length = Histogram(
            "te_request_input_length", "Tokens of a request", registry=self._registry, buckets=_TOKENS
        )
        self._batch_size = Histogram(
            "te_batch_next_size", "Texts of a forward pass", registry=self._registry, buckets=_SIZES
        )
        self._batch_tokens = Histogram(
            "te_batch_next_tokens", "Tokens of a forward pass", registry=self._registry, buckets=_TOKENS
        )
        self._registry.register(_Read(self, engine, names))
        if engine is not None:
            engine.batcher.observe = self._passed

    @contextmanager
    def request(self, texts: int) -> Iterator[None]:
        """Count a request of so many texts, and how it ends."""
        method = "single" if texts == 1 else "batch"
        self.requests[method] += 1
        try:
            yield
        except ClientDisconnect:
            raise
        except Exception as error:  # counted and raised again; what is no refusal is a defect
            code = error.code if isinstance(error, LikenessError) else "model_output_invalid"
            failure = _FAILURES.get(code, "validation")
            self.failures[failure] = self.failures.get(failure, 0) + 1
            raise
        else:
            self.successes[method] += 1
            self.texts += texts

    def took(self, seconds: float, timings: Timings, tokens: int) -> None:
        """Where an answered request's time went."""
        self._durations["total"].observe(seconds)
        if timings.forward:  # else all vectors were known
            self._durations["tokenize"].observe(timings.tokenize)
            self._durations["queue"].observe(timings.queue)
            self._durations["forward"].observe(timings.forward)
        self._length.observe(tokens)

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self._registry)

    def _passed(self, texts: int, tokens: int) -> None:
        self._batch_size.observe(texts)
        self._batch_tokens.observe(tokens)


class _Read(Collector):
    """What others count."""

    def __init__(self, metrics: Metrics, engine: InferenceEngine | None, names: Counts | None) -> None:
        self._metrics = metrics
        self._engine = engine
        self._names = names

    def collect(self) -> Iterable[Metric]:
        """Everything as it is now."""
        counted = self._metrics
        # Without `_total`, as their names there are.
        yield _by("te_request_count", "Requests", "method", counted.requests)
        yield _by("te_request_success", "Requests that were answered", "method", counted.successes)
        yield _by("te_request_failure", "Requests that were refused or failed", "err", counted.failures)
        yield _one("te_embed_count", "Texts embedded", counted.texts)
        if self._names is not None:
            yield _by("likeness_names", "Look-ups of keys and names, by whether they were remembered", "found",
                      {"remembered": self._names.hits, "asked": self._names.misses})  # fmt: skip
        if self._engine is not None:
            yield from _of_engine(self._engine)


def _of_engine(engine: InferenceEngine) -> Iterator[Metric]:
    batcher, pool, cache = engine.batcher, engine.pool, engine.cache
    yield _one("te_queue_size", "Requests that wait for a forward pass", batcher.waiting_requests)
    yield _one("likeness_queue_tokens", "Tokens of requests without an answer", batcher.queued_tokens)
    passes = batcher.passes
    yield _one("likeness_passes", "Forward passes", passes.count)
    yield _one("likeness_pass_texts", "Texts in forward passes", passes.texts)
    yield _one("likeness_pass_tokens", "Tokens in forward passes", passes.tokens)
    yield _one("likeness_pass_seconds", "Seconds of forward passes, of all threads together", passes.seconds)
    yield _one("likeness_longest_pass_seconds", "Seconds of the longest pass so far", batcher.longest_pass)
    yield _by("likeness_pass_troubles", "Forward passes that failed, and were halved for lack of memory", "what",
              {"failed": passes.failed, "halved": passes.halved})  # fmt: skip
    yield _one("likeness_forward_threads_replaced", "Threads that died or did not come back", engine.lanes.replaced)
    known = {"known": cache.hits, "shared": engine.shared.hits, "unknown": cache.misses - engine.shared.hits}
    yield _by("likeness_vector_cache", "Texts by whether their vector was known", "found", known)
    yield _one("likeness_vector_cache_bytes", "Memory of known vectors", cache.bytes)
    yield _one("likeness_vector_cache_entries", "Known vectors", len(cache))
    moves = {"loaded": pool.loads, "dropped": pool.drops}
    yield _by("likeness_models", "Models loaded and dropped so far", "what", moves)
    loaded = list(pool.loaded())
    sizes: dict[str, int] = {}
    for each in loaded:
        name = _public(each.name)
        sizes[name] = sizes.get(name, 0) + each.size_bytes
    yield _by("likeness_model_bytes", "Memory of models' weights", "model", sizes)
    modes = Metric("likeness_model_mode", "The modes of a base model: for one text, and for several", "unknown")
    padding = Metric("likeness_padding", "Share of a base model's operations that padding took", "unknown")
    for each in loaded:
        if _public(each.name) == each.name:
            labels = {"model": each.name, "single": each.choice.single, "several": each.choice.several}
            modes.add_sample(modes.name, labels, 1)
            padding.add_sample(padding.name, {"model": each.name}, each.padding)
    yield modes
    yield padding


def _public(name: str) -> str:
    """A model's name as every team may see it: those of tuned models are their teams' own."""
    return "fine-tuned" if name.startswith("ft:") else name


def _one(name: str, help_: str, value: float) -> Metric:
    metric = Metric(name, help_, "unknown")
    metric.add_sample(name, {}, value)
    return metric


def _by(name: str, help_: str, label: str, values: dict[str, int]) -> Metric:
    metric = Metric(name, help_, "unknown")
    for key, value in values.items():
        metric.add_sample(name, {label: key}, value)
    return metric

"""The trainings that a fleet is kept busy with: small, real, and different in what their state consists of."""

from __future__ import annotations

import json
import string
from dataclasses import dataclass, field
from typing import Any

MODEL = "tiny/bert"
STEPS = 40
CHECKPOINT_EVERY = 5

_WORDS = [first + second for first in "bdfgklmn" for second in ("ando", "etil", "umar")]
_PAIRS = [{"anchor": f"what does {word} mean", "positive": f"{word} said in other words"} for word in _WORDS]
_LABELLED = [{"text": f"a {word} and {n} more", "label": word[0]} for word in _WORDS for n in range(2)]
_TEXTS = [
    {"text": f"{word} beside {other}, and then some"}
    for word, other in zip(_WORDS, _WORDS[5:] + _WORDS[:5], strict=True)
]
_VECTORS = [
    {"vector": [float((i * 7 + j * 3) % 11 - 5) + 0.1 for j in range(8)], "label": string.ascii_lowercase[i % 4]}
    for i in range(24)
]

FILES: dict[str, list[dict[str, Any]]] = {"pairs": _PAIRS, "labels": _LABELLED, "texts": _TEXTS, "vectors": _VECTORS}


@dataclass(frozen=True)
class Spec:
    """A kind of job. Jobs of one spec end at the same bytes, whatever happens to them on their way."""

    name: str
    file: str
    model: str = MODEL
    loss: dict[str, Any] = field(default_factory=dict)
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    seed: int = 0

    def request(self, file_id: str, key: str) -> dict[str, Any]:
        """The body that creates a job; `key` is the client's own name for it."""
        numbers = {"max_steps": STEPS, "n_epochs": 1000, "batch_size": 8, "precision": "fp32", "learning_rate": 1e-3}
        texts = {} if self.file == "vectors" else {"max_seq_length": 24}
        contrastive = {
            "loss": {"temperature": 0.1, **self.loss},
            "hyperparameters": {**numbers, **texts, **self.hyperparameters},
            "data": {"eval_split": 0, **self.data},
            "checkpointing": {"every_steps": CHECKPOINT_EVERY},
            **self.options,
        }
        method = {"type": "contrastive", "contrastive": contrastive}
        return {
            "model": self.model, "training_file": file_id, "method": method, "seed": self.seed, "suffix": self.name,
            "metadata": {"client_key": key},
        }  # fmt: skip


SPECS: dict[str, Spec] = {
    spec.name: spec
    for spec in (
        Spec("ntxent", "pairs"),
        Spec("supcon", "labels", loss={"name": "supcon", "temperature": "learnable", "reduction": "class"}),
        Spec("memory", "pairs", loss={"symmetric": False, "memory_size": 32}, seed=3),
        Spec("cached", "pairs", hyperparameters={"micro_batch_size": 3, "lr_scheduler": "cosine"}, seed=5),
        Spec("dropout", "texts", loss={"temperature": "learnable"}, options={"export": []}),
        Spec(
            "judged", "pairs", data={"eval_split": 0.25}, seed=11,
            options={"evaluation": {"every_steps": 10, "keep": "best"}},
        ),
    )
}  # fmt: skip


def content(file: str) -> bytes:
    """A file as it is uploaded."""
    return "\n".join(map(json.dumps, FILES[file])).encode() + b"\n"

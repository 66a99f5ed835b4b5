"""A text encoder: a sentence-transformers folder in, unit vectors out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn

from encoders.bert import Bert, BertShape, Dropout, pack, pool_cls, pool_mean
from encoders.errors import NonFiniteWeightsError, UnsafeFolderError, UnsupportedArchitectureError
from encoders.folder import (
    POOLING,
    WEIGHTS,
    check_folder,
    read_fraction,
    read_object,
    read_positive_int,
)
from encoders.tokenizer import TextTokenizer, TokenizedText

POOLINGS = {"mean": pool_mean, "cls": pool_cls}

# Settings of config.json that the forward takes for granted.
_SUPPORTED = {
    "model_type": "bert",
    "hidden_act": "gelu",
    "position_embedding_type": "absolute",
    "is_decoder": False,
}


class TextEncoder(nn.Module):
    """Texts to vectors with a packed BERT (see `encoders/bert.py`).

    `dropout` holds the probabilities used while `training`; they come from `config.json` and may be replaced,
    for instance by `Dropout()` for none (5 to 10 % faster on a CPU).

    The word embeddings' gradient is dense, as torch makes it: for 30 522 · 384 of them, filling it and
    the optimizer's pass over it cost about 13 ms of a step.
    """

    def __init__(self, bert: Bert, tokenizer: TextTokenizer, *, pooling: str, dropout: Dropout) -> None:
        super().__init__()
        self.bert = bert
        self.tokenizer = tokenizer
        self.pooling = pooling
        self.dropout = dropout

    @classmethod
    def load(cls, folder: Path, *, device: str | torch.device = "cpu") -> TextEncoder:
        """Check and open a sentence-transformers folder; float32, in eval mode.

        Raises UnsafeFolderError, UnsupportedArchitectureError or NonFiniteWeightsError.
        """
        check_folder(folder)
        _check_supported(read_object(folder, "config.json"))
        tokenizer = TextTokenizer.of_folder(folder)
        bert = _load_bert(folder)
        if tokenizer.vocabulary_size > bert.embeddings.word_embeddings.num_embeddings:
            raise UnsafeFolderError("tokenizer.json knows more tokens than config.json; copy both again.")
        dropout = Dropout(
            hidden=read_fraction(folder, "hidden_dropout_prob", 0.1),
            attention=read_fraction(folder, "attention_probs_dropout_prob", 0.1),
        )
        encoder = cls(bert, tokenizer, pooling=_read_pooling(folder), dropout=dropout)
        return encoder.to(device).eval()

    @property
    def dimension(self) -> int:
        return self.bert.embeddings.word_embeddings.embedding_dim

    @property
    def max_seq_length(self) -> int:
        """How many tokens of a text are read, [CLS] and [SEP] included."""
        return self.tokenizer.max_seq_length

    @property
    def device(self) -> torch.device:
        return self.bert.embeddings.word_embeddings.weight.device

    def tokenize(self, texts: Sequence[str]) -> list[TokenizedText]:
        """Token ids as the model reads them: int32, cut to `max_seq_length` between [CLS] and [SEP]."""
        return self.tokenizer(texts)

    def forward(self, tokens: Sequence[np.ndarray]) -> Tensor:
        """Token ids, one integer array (length,) a text, to pooled vectors (n, dimension).

        Not yet of length 1, and with dropout when `training`. No texts have a gradient too, of zeros.
        """
        if not tokens:
            # Cut from the vector of some text: where several processes train, one that has no texts must go through
            # the backward pass with the others, in the same parameters.
            some_text = np.zeros(1, dtype=np.int32)
            return self.forward([some_text])[:0]
        return self._pool(tokens, self.dropout if self.training else Dropout())

    @torch.inference_mode()
    def embed(self, tokens: Sequence[np.ndarray]) -> np.ndarray:
        """Token ids, one integer array (length,) a text, to (n, dimension) float32 of length 1.

        Never with dropout, training or not.
        """
        vectors = F.normalize(self._pool(tokens, Dropout()).float(), dim=-1)
        found: np.ndarray = vectors.cpu().numpy()
        return found

    def encode(
        self,
        texts: Sequence[str],
        /,
        *,
        tokens_per_batch: int = 8192,
        progress: Callable[[int], None] | None = None,
    ) -> np.ndarray:
        """Texts to (n, dimension) float32 of length 1, in the order given.

        No forward is given more than `tokens_per_batch`, unless one text alone is longer.
        `progress` hears how many texts are done, after each batch.
        """
        tokens = [tokenized.ids for tokenized in self.tokenize(texts)]
        vectors = np.zeros((len(texts), self.dimension), dtype=np.float32)
        done = 0
        for batch in _batches([len(ids) for ids in tokens], tokens_per_batch):
            vectors[batch] = self.embed([tokens[index] for index in batch])
            done += len(batch)
            if progress is not None:
                progress(done)
        return vectors

    def _pool(self, tokens: Sequence[np.ndarray], dropout: Dropout) -> Tensor:
        if not tokens:
            return torch.zeros(0, self.dimension, device=self.device)
        packed = pack(tokens, self.device)
        return POOLINGS[self.pooling](self.bert(packed, dropout), packed)


def _batches(lengths: list[int], tokens_per_batch: int) -> list[list[int]]:
    """Indices by length, cut where the next text would pass the budget; a text over it goes alone."""
    batches: list[list[int]] = []
    room = 0
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        if not batches or lengths[index] > room:
            batches.append([])
            room = tokens_per_batch
        batches[-1].append(index)
        room -= lengths[index]
    return batches


def _check_supported(config: dict[str, Any]) -> None:
    for setting, supported in _SUPPORTED.items():
        # Old files leave out what was the only possibility then.
        found = config.get(setting, None if setting == "model_type" else supported)
        if found != supported:
            raise UnsupportedArchitectureError(
                f"config.json has {setting} {found!r}; supported is {supported!r}, as in BERT and MiniLM."
            )


def _read_pooling(folder: Path) -> str:
    """The pooling's name; sentence-transformers before 6 wrote one flag for each instead."""
    config = read_object(folder, POOLING)
    flags = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
    stated = config.get("pooling_mode") or [
        flags.get(key, key) for key, on in config.items() if key.startswith("pooling_mode_") and on
    ]
    names = [stated] if isinstance(stated, str) else list(stated)
    if len(names) != 1 or names[0] not in POOLINGS:
        raise UnsupportedArchitectureError(f"{POOLING} has {names}; supported is one of {', '.join(POOLINGS)}.")
    return str(names[0])


def _load_bert(folder: Path) -> Bert:
    sizes = {
        size: read_positive_int(folder, size) for size in BertShape.__dataclass_fields__ if size != "layer_norm_eps"
    }
    if sizes["hidden_size"] % sizes["num_attention_heads"]:
        raise UnsafeFolderError("config.json has a hidden_size that num_attention_heads does not divide.")
    epsilon = read_fraction(folder, "layer_norm_eps", 1e-12)
    # No memory for weights that are replaced at once, nor for sizes that the weights do not bear out.
    with torch.device("meta"):
        bert = Bert(BertShape(**sizes, layer_norm_eps=epsilon))
    weights = _read_weights(folder / WEIGHTS, set(bert.state_dict()))
    try:
        bert.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        raise UnsafeFolderError(f"{WEIGHTS} does not fit config.json: {error}") from error
    return bert


def _read_weights(path: Path, names: set[str]) -> dict[str, Tensor]:
    """The named tensors as float32, in memory of their own: the file may change while the model is in use."""
    weights = {}
    with safe_open(path, framework="pt") as file:
        for name in names & set(file.keys()):
            weights[name] = file.get_tensor(name).to(torch.float32, copy=True)
            check_finite(name, weights[name])
    return weights


def check_finite(name: str, weights: Tensor) -> None:
    """Raise NonFiniteWeightsError when any weight is NaN or infinite."""
    # Both ends of the range carry NaN and infinity: one pass, and no mask as large as the weights.
    if not torch.stack(torch.aminmax(weights.detach())).isfinite().all():
        raise NonFiniteWeightsError(f"The weights {name!r} hold NaN or infinity; no embedding can come of them.")

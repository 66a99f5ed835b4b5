"""A text encoder: a sentence-transformers folder in, or one of transformers alone, unit vectors out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from encoders import architectures
from encoders.bert import Dropout, pack, pool_cls, pool_last, pool_mean
from encoders.errors import UnsafeFolderError, UnsupportedArchitectureError
from encoders.folder import POOLING, check_folder, read_object
from encoders.projection import Projection
from encoders.prompts import Prompts
from encoders.tokenizer import TextTokenizer, TokenizedText
from encoders.transformer import Transformer

POOLINGS = {"mean": pool_mean, "cls": pool_cls, "last": pool_last}
# The names of sentence-transformers, and the flags that it had instead before version 6.
_PUBLISHED_POOLINGS = {"mean": "mean", "cls": "cls", "lasttoken": "last"}
_POOLING_FLAGS = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "lasttoken",
}


class TextEncoder(nn.Module):
    """Texts to vectors: tokens, their states, one vector for each text by `pooling`, and at will a projection of it.

    `dropout` holds the probabilities used while `training`; they come from `config.json` and may be replaced,
    for instance by `Dropout()` for none (5 to 10 % faster on a CPU). What is frozen is never dropped from, and
    leaves no graph.

    The word embeddings' gradient is dense, as torch makes it: for 30 522 · 384 of them, filling it and
    the optimizer's pass over it cost about 13 ms of a step.
    """

    def __init__(
        self,
        transformer: Transformer,
        tokenizer: TextTokenizer,
        *,
        pooling: str,
        dropout: Dropout,
        projection: Projection | None = None,
        prompts: Prompts | None = None,
    ) -> None:
        super().__init__()
        self.transformer = transformer
        self.projection = projection
        self.tokenizer = tokenizer
        self.pooling = pooling
        self.dropout = dropout
        self.prompts = prompts or Prompts()
        #: Dimensions to which its vectors may be cut; none are known for most encoders.
        self.matryoshka_dims: tuple[int, ...] = ()

    @classmethod
    def load(cls, folder: Path, *, device: str | torch.device = "cpu") -> TextEncoder:
        """Check and open a folder; float32, in eval mode.

        Raises UnsafeFolderError, UnsupportedArchitectureError, MissingExtraError or NonFiniteWeightsError.
        """
        check_folder(folder)
        pooling = _read_pooling(folder)
        tokenizer = TextTokenizer.of_folder(folder)
        transformer, dropout = architectures.load(folder)
        if tokenizer.vocabulary_size > transformer.word_embeddings.num_embeddings:
            raise UnsafeFolderError("tokenizer.json knows more tokens than config.json; copy both again.")
        projection = Projection.of_folder(folder, transformer.word_embeddings.embedding_dim)
        prompts = Prompts.of_folder(folder)
        encoder = cls(transformer, tokenizer, pooling=pooling, dropout=dropout, projection=projection, prompts=prompts)
        return encoder.to(device).eval()

    @property
    def packs(self) -> bool:
        """Whether a batch costs what its tokens cost, however unequal its texts are in length."""
        return self.transformer.packs

    @property
    def dimension(self) -> int:
        return self.projection.dimension if self.projection else self.transformer.word_embeddings.embedding_dim

    @property
    def max_seq_length(self) -> int:
        """How many tokens of a text are read, [CLS] and [SEP] included."""
        return self.tokenizer.max_seq_length

    @property
    def device(self) -> torch.device:
        return self.transformer.word_embeddings.weight.device

    def tokenize(self, texts: Sequence[str], *, prompt: str | None = None) -> list[TokenizedText]:
        """Token ids as the model reads them: int32, cut to `max_seq_length` before the closing token.

        `prompt` names one of `prompts`; see `Prompts.of`, which raises UnknownPromptError.
        """
        before = self.prompts.of(prompt)
        return self.tokenizer([before + text for text in texts] if before else texts)

    def forward(self, tokens: Sequence[np.ndarray]) -> Tensor:
        """Token ids, one integer array (length,) a text, to pooled vectors (n, dimension).

        Not yet of length 1, and with dropout when `training`. No texts have a gradient too, of zeros.
        """
        if not tokens:
            # Cut from the vector of some text: where several processes train, one that has no texts must go through
            # the backward pass with the others, in the same parameters.
            some_text = np.zeros(1, dtype=np.int32)
            return self.forward([some_text])[:0]
        return self._vectors(tokens, self.dropout if self.training else Dropout())

    @torch.inference_mode()
    def embed(self, tokens: Sequence[np.ndarray]) -> np.ndarray:
        """Token ids, one integer array (length,) a text, to (n, dimension) float32 of length 1.

        Never with dropout, training or not.
        """
        with _evaluating(self):
            vectors = F.normalize(self._vectors(tokens, Dropout()).float(), dim=-1)
        found: np.ndarray = vectors.cpu().numpy()
        return found

    def encode(
        self,
        texts: Sequence[str],
        /,
        *,
        prompt: str | None = None,
        tokens_per_batch: int = 8192,
        progress: Callable[[int], None] | None = None,
    ) -> np.ndarray:
        """Texts to (n, dimension) float32 of length 1, in the order given; `prompt` as in `tokenize`.

        No forward is given more than `tokens_per_batch`, unless one text alone is longer.
        `progress` hears how many texts are done, after each batch.
        """
        tokens = [tokenized.ids for tokenized in self.tokenize(texts, prompt=prompt)]
        vectors = np.zeros((len(texts), self.dimension), dtype=np.float32)
        done = 0
        for batch in _batches([len(ids) for ids in tokens], tokens_per_batch):
            vectors[batch] = self.embed([tokens[index] for index in batch])
            done += len(batch)
            if progress is not None:
                progress(done)
        return vectors

    def _vectors(self, tokens: Sequence[np.ndarray], dropout: Dropout) -> Tensor:
        if not tokens:
            return torch.zeros(0, self.dimension, device=self.device)
        packed = pack(tokens, self.device)
        dropout = dropout.within(self.transformer)
        pooled = POOLINGS[self.pooling](self.transformer(packed, dropout), packed)
        return pooled if self.projection is None else self.projection(pooled)


@contextmanager
def _evaluating(encoder: TextEncoder) -> Iterator[None]:
    """Without the dropout of parts that have their own: those of other libraries."""
    if not encoder.training:
        yield
        return
    encoder.eval()
    try:
        yield
    finally:
        encoder.train()


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


def _read_pooling(folder: Path) -> str:
    """The pooling's name, one of POOLINGS; the mean where the folder says nothing of it."""
    config = read_object(folder, POOLING)
    if not config:
        return "mean"
    stated = config.get("pooling_mode") or [
        _POOLING_FLAGS.get(key, key) for key, on in config.items() if key.startswith("pooling_mode_") and on
    ]
    names = [stated] if isinstance(stated, str) else list(stated)
    if len(names) != 1 or names[0] not in _PUBLISHED_POOLINGS:
        raise UnsupportedArchitectureError(
            f"{POOLING} has {names}; supported is one of {', '.join(_PUBLISHED_POOLINGS)}."
        )
    if config.get("include_prompt", True) is not True:
        raise UnsupportedArchitectureError(f"{POOLING} leaves the prompt out of the pooling; here it is part of it.")
    return _PUBLISHED_POOLINGS[names[0]]

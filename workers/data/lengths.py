"""How long texts are in tokens, and in which script, on a sample of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from api_schemas.reports import LengthBin, ScriptShare, TokenLengths
from workers.data.preparation import Tokenizer
from workers.data.samples import Reservoir
from workers.data.scripts import main_script

SAMPLE = 20_000
#: Characters of texts in the sample that wait to be measured.
_WAITING_CHARACTERS = 4 * 1024 * 1024
_SHORTEST_BIN = 8


class Measure(NamedTuple):
    """An encoder's tokenizer, without the encoder."""

    model: str
    tokenizer: Tokenizer
    max_seq_length: int


class _Measured(NamedTuple):
    length: int  # tokens; 0 without a tokenizer
    script: str


class TextSample:
    """A random sample of at most 20 000 texts. A text is kept until it is measured, and that is soon."""

    def __init__(self, measure: Measure | None) -> None:
        self._measure = measure
        self._reservoir: Reservoir[str | _Measured] = Reservoir(SAMPLE)
        self._waiting: set[int] = set()
        self._characters = 0

    def add(self, texts: Sequence[str]) -> None:
        """Show it more texts."""
        for place in self._reservoir.add(texts):
            self._waiting.add(place)
            self._characters += len(self._reservoir.kept[place])
            if self._characters > _WAITING_CHARACTERS:
                self._measure_waiting()

    def scripts(self) -> list[ScriptShare]:
        """The scripts of the sampled texts, the most frequent first."""
        counts = Counter(each.script for each in self._measured())
        return [ScriptShare(script=script, share=count / counts.total()) for script, count in counts.most_common()]

    def token_lengths(self) -> TokenLengths | None:
        """None without a tokenizer, and without texts."""
        lengths = np.array([each.length for each in self._measured()], dtype=np.int64)
        if self._measure is None or not len(lengths):
            return None
        limit = self._measure.max_seq_length
        return TokenLengths(
            model=self._measure.model,
            max_seq_length=limit,
            texts=self._reservoir.seen,
            sampled=len(lengths),
            median=_quantile(lengths, 0.5),
            p95=_quantile(lengths, 0.95),
            longest=int(lengths.max()),
            texts_cut=float((lengths > limit).mean()),
            tokens_cut=float(np.maximum(lengths - limit, 0).sum() / lengths.sum()),
            histogram=_histogram(lengths, limit),
        )

    def _measured(self) -> list[_Measured]:
        self._measure_waiting()
        return [each for each in self._reservoir.kept if isinstance(each, _Measured)]

    def _measure_waiting(self) -> None:
        places = [place for place in self._waiting if isinstance(self._reservoir.kept[place], str)]
        texts = [str(self._reservoir.kept[place]) for place in places]
        lengths = [0] * len(texts)
        if self._measure is not None and texts:
            lengths = [each.untruncated_length for each in self._measure.tokenizer(texts)]
        for place, text, length in zip(places, texts, lengths, strict=True):
            self._reservoir.kept[place] = _Measured(length, main_script(text))
        self._waiting.clear()
        self._characters = 0


def _quantile(lengths: npt.NDArray[np.int64], share: float) -> int:
    """The shortest length that so many texts don't exceed."""
    return int(np.quantile(lengths, share, method="inverted_cdf"))


def _histogram(lengths: npt.NDArray[np.int64], limit: int) -> list[LengthBin]:
    """Bins that end at powers of two and at the limit, as far as there are texts; the last has no end."""
    powers = [2**power for power in range(3, 14)]
    ends = [end for end in sorted({*powers, limit}) if end <= max(limit, _next_power(int(lengths.max())))]
    counts = np.histogram(lengths, bins=[0, *(end + 1 for end in ends), np.iinfo(np.int64).max])[0].tolist()
    bins = [LengthBin(up_to=end, texts=count) for end, count in zip([*ends, None], counts, strict=True)]
    return bins if counts[-1] else bins[:-1]


def _next_power(length: int) -> int:
    return max(_SHORTEST_BIN, 1 << (length - 1).bit_length())

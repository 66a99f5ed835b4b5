"""Text to token ids, in time bounded by the length that the model reads."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tokenizers import Encoding, Tokenizer

from encoders.errors import UnsafeFolderError, UnsupportedArchitectureError
from encoders.folder import TOKENIZER, read_max_seq_length, read_object

# Text beyond this many characters for each token that the model reads is not looked at. English has 4 to 5
# characters a token; hardly any text has 32 on average over its first 256 tokens.
_CHARACTERS_PER_TOKEN = 32
_WHITESPACE_RUNS = re.compile(r"[ \t\r\n]{2,}")


class TokenizedText(NamedTuple):
    """A text as the model reads it."""

    ids: np.ndarray
    """(length,) int32, closed by [SEP] or the like, at most `max_seq_length` long."""

    untruncated_length: int
    """How long `ids` would be without the cut; a lower bound for texts over 32 characters a token read."""


class Token(NamedTuple):
    """A token of a text, for people and programs that look at them."""

    id: int
    text: str
    """What of the text it stands for; of a special token, its name."""
    special: bool
    start: int | None
    stop: int | None
    """Where it begins and ends in the UTF-8 of the text, in bytes; None for a special token."""


class TextTokenizer:
    """A `tokenizer.json` whose own truncation and padding are off: ours follow `max_seq_length`."""

    def __init__(self, path: Path, *, max_seq_length: int, lowercase: bool) -> None:
        self._tokenizer = _open(path)
        #: SHA-256 of all that decides which ids a text is given, hexadecimal.
        self.fingerprint = _fingerprint(path, max_seq_length, lowercase=lowercase)
        # all-MiniLM-L6-v2 comes with both, at 128 tokens, while the model reads 256.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._lowercase = lowercase
        self.max_seq_length = max_seq_length
        if self._tokenizer.encode("a").special_tokens_mask[-2:] != [0, 1]:
            # Texts are cut before it, and a text without any token of its own is still one.
            raise UnsupportedArchitectureError("tokenizer.json must close a text by one token, such as [SEP].")

    @classmethod
    def of_folder(cls, folder: Path) -> TextTokenizer:
        """The tokenizer of a sentence-transformers folder. Raises UnsafeFolderError, UnsupportedArchitectureError."""
        settings = read_object(folder, "sentence_bert_config.json")
        return cls(
            folder / TOKENIZER,
            max_seq_length=read_max_seq_length(folder),
            lowercase=settings.get("do_lower_case") is True,
        )

    @property
    def vocabulary_size(self) -> int:
        size: int = self._tokenizer.get_vocab_size()
        return size

    def continues(self) -> np.ndarray | None:
        """Which tokens continue a word, (vocabulary_size,) bool; None where the tokenizer has no mark for them."""
        prefix = json.loads(self._tokenizer.to_str())["model"].get("continuing_subword_prefix")
        if not prefix:
            return None
        tokens = (self._tokenizer.id_to_token(number) or "" for number in range(self.vocabulary_size))
        return np.array([token.startswith(prefix) for token in tokens])

    def decode(self, ids: np.ndarray) -> str:
        """About the text that the ids (length,) were made of: case and spaces may be lost."""
        text: str = self._tokenizer.decode(ids.tolist(), skip_special_tokens=True)
        return text

    def tokens(self, texts: Sequence[str], *, add_special_tokens: bool = True) -> list[list[Token]]:
        """All tokens of each text, uncut; how long it takes, the texts decide (100 000 characters: up to a second)."""
        prepared = [text.lower() if self._lowercase else text for text in map(without_surrogates, texts)]
        encodings = self._tokenizer.encode_batch(prepared, add_special_tokens=add_special_tokens)
        return [_tokens_of(text, encoding) for text, encoding in zip(prepared, encodings, strict=True)]

    def __call__(self, texts: Sequence[str]) -> list[TokenizedText]:
        encodings = self._tokenizer.encode_batch_fast([self._prepare(text) for text in texts])
        return [self._cut(encoding.ids) for encoding in encodings]

    def _prepare(self, text: str) -> str:
        text = without_surrogates(text)
        limit = self.max_seq_length * _CHARACTERS_PER_TOKEN
        if len(text) > limit:
            # A megabyte takes the tokenizer up to 3 s. Whitespace makes no tokens, so it doesn't count.
            text = _WHITESPACE_RUNS.sub(" ", text)[:limit]
        return text.lower() if self._lowercase else text

    def _cut(self, ids: list[int]) -> TokenizedText:
        if len(ids) <= self.max_seq_length:
            return TokenizedText(np.array(ids, dtype=np.int32), len(ids))
        kept = [*ids[: self.max_seq_length - 1], ids[-1]]
        return TokenizedText(np.array(kept, dtype=np.int32), len(ids))


def _tokens_of(text: str, encoding: Encoding) -> list[Token]:
    places = np.cumsum([0, *(len(character.encode()) for character in text)]).tolist()
    pieces = zip(encoding.ids, encoding.tokens, encoding.offsets, encoding.special_tokens_mask, strict=True)
    return [
        Token(number, name, True, None, None)
        if special
        else Token(number, text[start:stop], False, places[start], places[stop])
        for number, name, (start, stop), special in pieces
    ]


def without_surrogates(text: str) -> str:
    """Half of a surrogate pair is legal in JSON and in str, but is no text: it becomes a question mark."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _fingerprint(path: Path, max_seq_length: int, *, lowercase: bool) -> str:
    settings = f"{max_seq_length} {lowercase} {_CHARACTERS_PER_TOKEN}\n"
    return hashlib.sha256(settings.encode() + path.read_bytes()).hexdigest()


def _open(path: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library has no exception of its own
        raise UnsafeFolderError(f"{path.name} is no tokenizer: {error}") from error

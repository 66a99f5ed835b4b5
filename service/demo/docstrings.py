"""A real dataset on the spot: what the standard library calls its things, and what it says they do.

A pair is the qualified name of a public function, class or method, split into words (the anchor), and the
first sentence of its docstring (the positive):

    json.JSONEncoder.iterencode → "json json encoder iterencode"
                                  "Encode the given object and yield each string representation as available."
"""

import hashlib
import inspect
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from service.demo.library import Documented, standard_library

#: A sentence must hold this many words to say something.
MIN_WORDS = 3
#: What has no end by then is a list or an example rather than a sentence.
MAX_CHARACTERS = 300
#: About this share of the top-level modules is held out; being small ones, they hold a seventh of the pairs.
TEST_PERCENT = 24

#: Where a word of an identifier ends: aB → a B, ABc → A Bc, and at anything that is no letter or digit.
_WORD_ENDS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|[^A-Za-z0-9]+")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"'`(\[<*])")
_ABBREVIATION = re.compile(r"\b(e\.g|i\.e|etc|vs|cf|resp)\.$", re.IGNORECASE)
_CALL = re.compile(r"[A-Za-z_][\w.]*\(")
#: Where a signature's `-> what it returns` gives way to prose.
_RETURNED_END = re.compile(r"\.\s+(?=[A-Z])|\s--?\s")
#: A line drawn under a heading, an arrow that a signature left behind, a rule of a grammar.
_NO_PROSE = re.compile(r"[-=~*_#\s]+|.*->.*|\w+ = .*")


class Pair(NamedTuple):
    """Two texts that mean the same."""

    anchor: str
    positive: str

    @property
    def row(self) -> str:
        """Its line in a dataset: {"anchor": …, "positive": …}."""
        return json.dumps(self._asdict(), ensure_ascii=False)


class Dataset(NamedTuple):
    """What to train on and what to judge by: no module and no text is in both."""

    train: list[Pair]
    test: list[Pair]


def build_dataset() -> Dataset:
    """Read the running Python's standard library. The same Python gives the same dataset."""
    return split(standard_library())


def write_jsonl(pairs: Iterable[Pair], path: Path) -> None:
    """Write a row a line."""
    path.write_text("".join(f"{pair.row}\n" for pair in pairs), encoding="utf-8", newline="\n")


def split(documented: Iterable[Documented]) -> Dataset:
    """Hold out whole modules, so that the test asks about code that training never saw."""
    dataset = Dataset([], [])
    for item in documented:
        pair = as_pair(item)
        if pair is not None:
            (dataset.test if is_held_out(item.module) else dataset.train).append(pair)
    train = _distinct(dataset.train, seen=set())
    return Dataset(train, _distinct(dataset.test, seen={_folded(text) for pair in train for text in pair}))


def is_held_out(module: str) -> bool:
    """Whether a top-level module belongs to the test split: decided by its name and nothing else."""
    return int.from_bytes(hashlib.sha256(module.encode()).digest()[:4], "big") % 100 < TEST_PERCENT


def as_pair(item: Documented) -> Pair | None:
    """The pair that a documented thing makes; None if its docstring says next to nothing."""
    positive = first_sentence(item.docstring)
    says_something = len(re.findall(r"[A-Za-z]{2,}", positive)) >= MIN_WORDS
    if not says_something or len(positive) > MAX_CHARACTERS or not positive.isprintable():
        return None
    return Pair(words(item.name), positive)


def words(name: str) -> str:
    """`json.JSONEncoder.iterencode` → `json json encoder iterencode`."""
    return " ".join(word.lower() for word in _WORD_ENDS.split(name) if word)


def first_sentence(docstring: str) -> str:
    """The first sentence on one line, without the signature that older docstrings begin with."""
    for paragraph in inspect.cleandoc(docstring).split("\n\n"):
        text = _without_signature(" ".join(paragraph.split()))
        if text and not _NO_PROSE.fullmatch(text):
            return _until_sentence_end(text)
    return ""


def _until_sentence_end(text: str) -> str:
    for end in _SENTENCE_END.finditer(text):
        if not _ABBREVIATION.search(text[: end.start()]):
            return text[: end.start()]
    return text


def _without_signature(text: str) -> str:
    """Cut `D.clear() -> None.  Remove all items.` and its like down to what it says, if it says anything."""
    if not _CALL.match(text):
        return text
    end = _closing_bracket(text)
    rest = text[end:].lstrip() if end else ""
    if rest.startswith(("->", "=>")):
        returned = _RETURNED_END.search(rest)
        rest = rest[returned.end() :] if returned else ""
    elif rest[:1].islower() and not _CALL.match(rest):  # "print(x) writes x": the call is the subject
        return text
    return _without_signature(rest.lstrip("-–: "))


def _closing_bracket(text: str) -> int | None:
    """Where the first bracket is closed: the index after it."""
    depth = 0
    for index, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if character == ")" and depth == 0:
            return index + 1
    return None


def _distinct(pairs: Iterable[Pair], seen: set[str]) -> list[Pair]:
    """Pairs both of whose texts are new. A text met twice would have two right answers."""
    kept = []
    for pair in pairs:
        texts = {_folded(pair.anchor), _folded(pair.positive)}
        if len(texts) == 2 and not texts & seen:
            seen |= texts
            kept.append(pair)
    return kept


def _folded(text: str) -> str:
    return text.casefold().rstrip(".")

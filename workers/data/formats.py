"""What the rows of a file are, told by the names of their fields or by whoever sent the file.

A name in a file and the role it plays are two things: `question` may be an anchor. The roles are those of ROLES; the
names that are understood without being told are those of NAMES, and `ReadOptions.columns` adds others.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from api_schemas.files import DataFormat
from workers.data.row import RowRefusedError

#: format → what a row of it consists of
ROLES: Mapping[DataFormat, tuple[str, ...]] = {
    "triplets": ("anchor", "positive", "negative"),
    "scored_pairs": ("anchor", "positive", "score"),
    "pairs": ("anchor", "positive"),
    "labels": ("text", "label"),
    "views": ("views",),
    "vectors": ("vector", "label"),
    "vector_pairs": ("anchor_vector", "positive_vector"),
    "texts": ("text",),
}
_PAIR_NAMES = (
    ("anchor", "positive"),
    ("query", "pos"),
    ("query", "positive"),
    ("sentence1", "sentence2"),
    ("question", "answer"),
    ("text_a", "text_b"),
)
#: What says how alike two texts are, whatever these are called: the higher, the more.
SCORES = ("score", "similarity", "similarity_score", "is_duplicate")
#: format → the names understood for its roles, ours first. Negatives have names of their own.
NAMES: Mapping[DataFormat, tuple[tuple[str, ...], ...]] = {
    "triplets": _PAIR_NAMES,
    "scored_pairs": tuple((*pair, score) for pair in _PAIR_NAMES for score in SCORES),
    "pairs": _PAIR_NAMES,
    "labels": (("text", "label"), ("sentence", "label")),
    "views": (("views",),),
    "vectors": (("vector", "label"), ("embedding", "label")),
    "vector_pairs": (("anchor_vector", "positive_vector"),),
    "texts": (("text",), ("sentence",)),
}
NEGATIVES = ("negative", "neg", "negatives", "neg_doc")
#: As tools write several negatives to a table: negative_1, negative_2, …
_NUMBERED_NEGATIVE = re.compile(r"negative_([1-9][0-9]{0,2})")
NUMBERED = "negative_1"
#: A score says nothing where there is no pair.
KNOWN: frozenset[str] = frozenset(
    [name for namings in NAMES.values() for naming in namings for name in naming] + [*NEGATIVES, NUMBERED]
) - frozenset(SCORES)

#: Two texts under these names may as well be unlike: a label beside them may say so, or the contrary.
_UNDECIDED = (("sentence1", "sentence2"), ("question", "answer"), ("text_a", "text_b"))
_VERDICT = "label"
_NAMED: Mapping[DataFormat, str] = {
    "triplets": "pairs with negatives",
    "scored_pairs": "scored pairs",
    "pairs": "pairs",
    "labels": "labelled texts",
    "views": "views",
    "vectors": "labelled vectors",
    "vector_pairs": "pairs of vectors",
    "texts": "plain texts",
}

EXPECTED = (
    'Expected are rows such as {"anchor": "a question", "positive": "its answer"} or '
    '{"text": "a message", "label": "its class"}.'
)
#: Only names like a person's are compared with ours: comparing takes the product of their lengths.
_LONGEST_COMPARED_NAME = 32
_MOST_COMPARED_NAMES = 32
_MOST_SHOWN_NAMES = 6


@dataclass(frozen=True)
class ReadOptions:
    """What the sender of a file says about it. What isn't said is recognised.

    Raises ValueError for a format, role or bound that doesn't exist; the message is for the sender.
    """

    format: DataFormat | None = None
    columns: Mapping[str, str] = field(default_factory=dict)  # role → name in the file
    max_expanded_bytes: int = 64 * 1024**3  # of what a compressed file holds
    scratch: Path | None = None  # where temporary files go; None for the system's directory

    def __post_init__(self) -> None:
        if self.format is not None and self.format not in ROLES:
            raise ValueError(f"format must be one of {', '.join(sorted(ROLES))}.")
        formats = _formats_with(self.columns)
        if not formats or (self.format is not None and self.format not in formats):
            raise ValueError(f"columns must name {_shown_roles(self.format)}, not {quoted(list(self.columns))}.")
        if len(set(self.columns.values())) < len(self.columns) or not any(map(self.namings.get, formats)):
            raise ValueError("columns must name a different column for each role.")

    @cached_property
    def namings(self) -> Mapping[DataFormat, list[tuple[str, ...]]]:
        """The names for the roles of a format but for negatives, with what the sender calls them in their place.

        No name is there for two roles.
        """
        return {data_format: [*dict.fromkeys(self._namings_of(data_format))] for data_format in ROLES}

    @cached_property
    def understood(self) -> frozenset[str]:
        """Every name that says something of a record."""
        return KNOWN.union(self.columns.values())

    @property
    def as_recognised(self) -> bool:
        """Whether nothing is said of what the rows are."""
        return self.format is None and not self.columns

    def _namings_of(self, data_format: DataFormat) -> Iterator[tuple[str, ...]]:
        for names in NAMES[data_format]:
            naming = tuple(map(self.columns.get, ROLES[data_format], names))
            played = (*naming, self.columns.get("negative"))
            if len(set(played)) == len(played):
                yield naming


class Fields(NamedTuple):
    """Which fields of a record are read, and as what."""

    format: DataFormat
    names: tuple[str, ...]  # of the format's roles without `negative`
    negative: str | None = None  # NUMBERED for negative_1, negative_2, …
    #: Names that would make a record something else. A row that has one is not of the file's format.
    foreign: frozenset[str] = frozenset()

    @property
    def all_names(self) -> tuple[str, ...]:
        """The names that every record must have."""
        return self.names if self.negative is None else (*self.names, self.negative)

    def fit(self, record: Mapping[str, Any]) -> bool:
        """Whether a record has what is read, and nothing that makes it a record of another format."""
        for name in self.names:
            if name not in record:
                return False
        if len(record) == len(self.names):
            return self.negative is None
        return (self.negative is None or self.negative in record) and self.foreign.isdisjoint(record)


def numbered_negatives(names: Iterable[str]) -> list[str]:
    """Those of the names that are negative_1, negative_2, …, in the order of their numbers."""
    matches = [match for match in map(_NUMBERED_NEGATIVE.fullmatch, names) if match is not None]
    return [match[0] for match in sorted(matches, key=lambda match: int(match[1]))]


def recognise(names: Collection[str], options: ReadOptions, *, briefly: bool = False) -> Fields:
    """What to read of records with fields of these names.

    Raises RowRefusedError; `briefly`, it doesn't look for what may have been meant, which takes a hundred times as
    long as all else.
    """
    complete = list(_complete(names, options))
    if not complete:
        raise _strange(names) if briefly else _incomplete(names, options)
    if len(complete) > 1:
        raise _ambiguous(complete)
    [fields] = complete
    if options.format is None and not options.columns:
        _refuse_judged_pairs(fields, names)
    return fields


def unfit(record: Mapping[str, Any], fields: Fields, options: ReadOptions, *, briefly: bool = False) -> RowRefusedError:
    """What to say of a record that does not have what the records before had; `briefly` as for `recognise`."""
    for other in _complete(record, options):
        if other.all_names != fields.all_names:
            remedy = "Put them into files of their own."
            if other.format == fields.format:
                remedy = "Use the same names in all rows."
            elif {other.format, fields.format} == {"pairs", "triplets"}:
                remedy = "Give every row a negative, or none."
            elif {other.format, fields.format} == {"pairs", "scored_pairs"}:
                remedy = "Give every row a score, or none."
            message = f"has {quoted(other.all_names)}, but the rows before have {quoted(fields.all_names)}. {remedy}"
            return RowRefusedError("row_mixed_format", message)
    strange = [name for name in fields.foreign if name in record]
    if strange and all(name in record for name in fields.all_names):
        message = f"has {quoted(sorted(strange))}, which the rows before don't have. Give it to every row, or to none."
        return RowRefusedError("row_mixed_format", message)
    return _chat(record) or _without(fields.all_names, record, briefly=briefly)


def quoted(names: Collection[str]) -> str:
    """Names from a file for a sentence."""
    return " and ".join(map(shown, names)) or "no fields"


def shown(name: str) -> str:
    """A name from a file, short and printable."""
    return repr(name if len(name) <= _LONGEST_COMPARED_NAME else name[:_LONGEST_COMPARED_NAME] + "…")


def _formats_with(columns: Mapping[str, str]) -> list[DataFormat]:
    """The formats that have all these roles. Any may be trained on beside an evaluation file with scores."""
    return [name for name, roles in ROLES.items() if set(columns) <= {*roles, "score"}]


def _shown_roles(data_format: DataFormat | None) -> str:
    if data_format is not None:
        return quoted(ROLES[data_format])
    return "the roles of one format: " + ", or ".join(quoted(roles) for roles in ROLES.values())


def _complete(names: Collection[str], options: ReadOptions) -> Iterator[Fields]:
    """Every reading that these names allow; more than one if they are ambiguous."""
    if options.understood.isdisjoint(names):
        return
    told = options.format
    formats = [told] if told is not None else [name for name in _formats_with(options.columns) if name != "texts"]
    found = [fields for name in formats for fields in _complete_in(name, names, options)]
    for more, less in (("triplets", "scored_pairs"), ("triplets", "pairs"), ("scored_pairs", "pairs")):
        taken = {fields.names[:2] for fields in found if fields.format == more}
        found = [fields for fields in found if fields.format != less or fields.names[:2] not in taken]
    if not found and told is None and set(options.columns) <= {"text", "score"}:
        found = [fields for fields in _complete_in("texts", names, options) if _is_plain(fields.names, names)]
    yield from found


def _complete_in(data_format: DataFormat, names: Collection[str], options: ReadOptions) -> Iterator[Fields]:
    namings = [naming for naming in options.namings[data_format] if all(name in names for name in naming)]
    if NAMES[data_format][0] in namings:
        namings = [NAMES[data_format][0]]  # our own names leave no doubt
    negatives: list[str | None] = [None]
    if data_format == "triplets":
        negatives = [*_negatives(names, options)]
    for naming in namings:
        for negative in (each for each in negatives if each not in naming):
            yield Fields(data_format, naming, negative, _foreign_to(data_format, naming, options))


def _negatives(names: Collection[str], options: ReadOptions) -> list[str]:
    told = options.columns.get("negative")
    if told is not None:
        return [told] if told in names else []
    return [name for name in (*NEGATIVES, NUMBERED) if name in names]


def _foreign_to(data_format: DataFormat, naming: tuple[str, ...], options: ReadOptions) -> frozenset[str]:
    """What a row of this format must not have beside its fields, lest it be silently ignored."""
    if options.format is not None:
        return frozenset()
    if data_format == "texts":
        return KNOWN - set(naming)
    foreign = {*NEGATIVES, NUMBERED} if data_format in ("pairs", "scored_pairs") else set()
    if data_format == "pairs":
        foreign |= {options.columns["score"]} if "score" in options.columns else set(SCORES)
    return frozenset(foreign).difference(naming)


def _is_plain(naming: tuple[str, ...], names: Collection[str]) -> bool:
    """Whether nothing beside a text hints that more than a text was meant."""
    others = [name for name in names if name not in naming]
    return KNOWN.isdisjoint(others) and _misspelt("label", others) is None


def _refuse_judged_pairs(fields: Fields, names: Collection[str]) -> None:
    if fields.format != "pairs" or fields.names not in _UNDECIDED:
        return
    if _VERDICT in names:
        message = (
            f"has {shown(_VERDICT)} beside {quoted(fields.names)}, so that not all pairs are alike. Keep the pairs "
            "that are and leave the column out, or say data.format: pairs if all are. To evaluate on them, name it "
            "'score' if more of it means more alike."
        )
        raise RowRefusedError("pairs_with_score", message, _VERDICT)


def _ambiguous(complete: list[Fields]) -> RowRefusedError:
    one, other, *_ = complete
    if one.format == other.format:
        remedy = "Say which are meant in data.columns, or leave one out."
        message = f"has both {quoted(one.all_names)} and {quoted(other.all_names)}. {remedy}"
    elif "scored_pairs" in (one.format, other.format):
        message = (
            f"could be {_NAMED[one.format]} ({quoted(one.all_names)}) or {_NAMED[other.format]} "
            f"({quoted(other.all_names)}). Leave out the fields that are not meant."
        )
    else:
        message = (
            f"could be {_NAMED[one.format]} ({quoted(one.all_names)}) or {_NAMED[other.format]} "
            f"({quoted(other.all_names)}). Say which with data.format: {one.format} or {other.format}."
        )
    return RowRefusedError("ambiguous_format", message)


def _incomplete(names: Collection[str], options: ReadOptions) -> RowRefusedError:
    """What to say of records that have the fields of no format."""
    if set(options.columns) - {"score"} or options.format is not None:
        data_format = options.format or [name for name in _formats_with(options.columns) if options.namings[name]][-1]
        wanted = [*options.namings[data_format][0]]
        if data_format == "triplets":
            wanted.append(options.columns.get("negative") or next(name for name in NEGATIVES if name not in wanted))
        return _beside(wanted[0], names) if all(name in names for name in wanted) else _without(wanted, names)
    if (chat := _chat(names)) is not None:
        return chat
    if "premise" in names and "hypothesis" in names:
        message = (
            "holds premises with hypotheses, of which only entailed ones are alike. Keep those, and name them "
            "'anchor' and 'positive'; a contradiction can be the 'negative'."
        )
        return RowRefusedError("row_missing_field", message)
    nearest = _nearest_naming(names)
    return _strange(names) if nearest is None else _without(nearest, names)


def _beside(text: str, names: Collection[str]) -> RowRefusedError:
    """What to say of records that have a text, as told, and beside it what texts alone don't have."""
    others = [name for name in names if name != text and (name in KNOWN or _misspelt("label", [name]) is not None)]
    message = (
        f"has {shown(others[0])} beside {shown(text)}. Say data.format: texts if it is to be left out, or in "
        "data.columns which role it has."
    )
    return RowRefusedError("ambiguous_format", message)


def _strange(names: Collection[str]) -> RowRefusedError:
    """What to say of records of which no field tells what they are."""
    return RowRefusedError("row_missing_field", f"has {quoted(list(names)[:_MOST_SHOWN_NAMES])}. {EXPECTED}")


def _chat(names: Collection[str]) -> RowRefusedError | None:
    if "messages" not in names:
        return None
    message = f"is a chat row, which teaches a model to answer; this service trains encoders. {EXPECTED}"
    return RowRefusedError("row_missing_field", message)


def _without(wanted: Collection[str], names: Collection[str], *, briefly: bool = False) -> RowRefusedError:
    """What to say where a wanted name is missing."""
    missing = next(name for name in wanted if name not in names)
    typo = None if briefly else _misspelt(missing, names)
    if typo is not None:
        remedy = f"Rename {shown(typo)}."
    else:
        ruled_out = {*KNOWN, *SCORES, *wanted}
        others = [name for name in list(names)[:_MOST_SHOWN_NAMES] if name not in ruled_out]
        remedy = f"Add it, or rename {' or '.join(map(shown, others))} if that is it." if others else "Add it."
    return RowRefusedError("row_missing_field", f"has no {shown(missing)}. {remedy}", missing)


def _nearest_naming(names: Collection[str]) -> tuple[str, ...] | None:
    """The names that were probably meant: those of which most are there, or nearly."""

    def nearness(naming: tuple[str, ...]) -> float:
        present = sum(name in names for name in naming)
        return present + sum(0.5 for name in naming if name not in names and _misspelt(name, names) is not None)

    of_training = (namings for name, namings in NAMES.items() if name != "scored_pairs")
    namings = list(dict.fromkeys(naming for namings in of_training for naming in namings if len(naming) > 1))
    best = max(namings, key=nearness)
    if nearness(best) > 0:
        return best
    return NAMES["views"][0] if _misspelt("views", names) is not None else None


def _misspelt(wanted: str, names: Collection[str]) -> str | None:
    """The field that was probably meant to be `wanted`."""
    candidates = {
        name.strip().lower(): name
        for name in list(names)[:_MOST_COMPARED_NAMES]
        if len(name) <= _LONGEST_COMPARED_NAME and name not in KNOWN
    }
    near = difflib.get_close_matches(wanted, candidates, n=1, cutoff=0.75)
    return candidates[near[0]] if near else None

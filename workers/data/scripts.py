"""Which script a text is mainly written in: a hint at its language that needs no model."""

from __future__ import annotations

import unicodedata
from collections import Counter
from functools import cache

#: Letters of a text that are looked at.
_LETTERS = 200
#: What the Unicode names of letters begin with, where that isn't the script's own name.
_NAMES = {
    "CJK": "Han",
    "IDEOGRAPHIC": "Han",
    "HIRAGANA": "Kana",
    "KATAKANA": "Kana",
    "KATAKANA-HIRAGANA": "Kana",
    "CANADIAN": "Canadian Aboriginal",
}
_WIDTHS = ("FULLWIDTH ", "HALFWIDTH ")
NO_LETTERS = "None"


def main_script(text: str) -> str:
    """The script of most of the first 200 letters, such as Latin, Cyrillic or Han; `None` without letters."""
    beginning = text[: 8 * _LETTERS]
    letters = [character for character in beginning if character.isalpha()][:_LETTERS]
    if not letters:
        return NO_LETTERS
    if beginning.isascii():
        return "Latin"
    [(script, _)] = Counter(map(_script, letters)).most_common(1)
    return script


@cache
def _script(letter: str) -> str:
    """The first word of a letter's name; Python does not have the property itself."""
    name = unicodedata.name(letter, "OTHER")
    for width in _WIDTHS:
        name = name.removeprefix(width)
    word = name.split(maxsplit=1)[0]
    return _NAMES.get(word, word.capitalize())

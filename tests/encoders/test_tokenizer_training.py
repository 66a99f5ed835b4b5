from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence

import pytest
from tokenizers import Tokenizer

from encoders.tokenizer_training import SMALLEST_VOCABULARY, train_tokenizer

ENGLISH = ["the cat sat on the mat", "The cats (all cats) sat", "a mat for the cat"]
TRAINED = """
from encoders.tokenizer_training import train_tokenizer
texts = [[f"{word} {other}, ein Wörtchen 中文 {number}" for number in range(9)] for word in "abc" for other in "xyz"]
print(train_tokenizer(texts, vocabulary_size=300).to_str())
"""


def trained(texts: Sequence[str], size: int = 400) -> Tokenizer:
    return train_tokenizer([texts], vocabulary_size=size)


def test_every_process_makes_the_same_bytes_of_the_same_texts() -> None:
    made = {
        subprocess.run(
            [sys.executable, "-c", TRAINED],
            capture_output=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": str(seed), "RAYON_NUM_THREADS": str(seed)},
        ).stdout
        for seed in (1, 2)
    }
    assert len({hashlib.sha256(each).hexdigest() for each in made}) == 1


def test_the_order_of_the_texts_and_how_many_come_at_a_time_change_nothing() -> None:
    shuffled = random.Random(0).sample(ENGLISH, len(ENGLISH))
    assert train_tokenizer(([text] for text in shuffled), vocabulary_size=400).to_str() == trained(ENGLISH).to_str()


@pytest.mark.parametrize(
    "text",
    [
        "straße über Ödön", "кошка сидит", "γάτα", "القط على", "חתול", "बिल्ली", "แมวนั่ง", "고양이가", "猫がマットに",
        "中文文字", "cafe\u0301", "🐈‍⬛ 🏳️‍🌈", "def f(x): return x**2", "\x00\u200b",
    ],
)  # fmt: skip
def test_texts_in_any_script_have_tokens_and_can_be_read_back(text: str) -> None:
    tokenizer = trained(ENGLISH)
    decoded = tokenizer.decode(tokenizer.encode(text).ids)
    normal = tokenizer.normalizer.normalize_str(text)
    assert decoded.replace(" ", "") == normal.replace(" ", "")


def test_case_and_what_stands_before_a_word_change_none_of_its_tokens() -> None:
    tokenizer = trained(ENGLISH)
    alone = tokenizer.encode("cat", add_special_tokens=False).ids
    assert len(alone) == 1
    for text in ("CAT", "(cat", "my Cat"):
        assert tokenizer.encode(text, add_special_tokens=False).ids[-1:] == alone


def test_a_text_stands_between_two_tokens_of_its_own() -> None:
    assert trained(ENGLISH).encode("").tokens == ["[CLS]", "[SEP]"]


def test_the_vocabulary_grows_no_larger_than_asked_and_holds_no_piece_that_occurs_once() -> None:
    many = [f"{number:x} words {number}" for number in range(3000)]
    assert trained(many, 300).get_vocab_size() == 300
    once = ["abc", "dfg", "hij"]
    assert trained(once).get_vocab_size() == SMALLEST_VOCABULARY
    assert trained([]).get_vocab_size() == SMALLEST_VOCABULARY


def test_a_word_without_an_end_becomes_no_token() -> None:
    longest = max(trained(["x" * 5000] * 5).get_vocab(), key=len)
    assert len(longest) <= 32


def test_half_a_surrogate_pair_is_no_obstacle() -> None:
    assert trained(["a cat \ud800", "a cat \ud800"]).get_vocab_size() > SMALLEST_VOCABULARY


def test_what_goes_wrong_while_texts_are_read_is_told_as_it_is() -> None:
    def texts() -> Iterator[list[str]]:
        yield ENGLISH
        raise InterruptedError("no more")

    with pytest.raises(InterruptedError, match="no more"):
        train_tokenizer(texts(), vocabulary_size=400)

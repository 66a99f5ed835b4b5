from __future__ import annotations

import numpy as np
import pytest

from encoders.text import TextEncoder
from encoders.tokenizer import TextTokenizer


def test_a_long_text_is_cut_between_its_frame_and_tells_its_length(minilm: TextEncoder) -> None:
    (cut,) = minilm.tokenize(["word " * 300])
    assert (len(cut.ids), cut.untruncated_length, cut.ids.dtype) == (256, 302, np.int32)
    assert (cut.ids[0], cut.ids[-1]) == (101, 102)
    assert set(cut.ids[1:-1]) == {2773}


def test_a_short_text_is_neither_cut_nor_padded(minilm: TextEncoder) -> None:
    empty, short = minilm.tokenize(["", "Hello, world"])
    assert empty.ids.tolist() == [101, 102]
    assert short.ids.tolist() == [101, 7592, 1010, 2088, 102]
    assert short.untruncated_length == 5


def test_no_texts_are_no_tokens(minilm: TextEncoder) -> None:
    assert minilm.tokenize([]) == []


@pytest.mark.parametrize("text", ["a", "word ", "漢", "a\u0301\u0327", "\u0301", " ", ".", "\ufdfa", "\0", "[SEP]"])
def test_a_megabyte_is_read_up_to_a_bound(minilm: TextEncoder, text: str) -> None:
    """Unbounded, some of these have a million tokens."""
    (tokenized,) = minilm.tokenize([text * (1_000_000 // len(text))])
    assert len(tokenized.ids) <= minilm.max_seq_length
    assert tokenized.untruncated_length <= 32 * minilm.max_seq_length + 2


def test_whitespace_does_not_push_words_out_of_reach(minilm: TextEncoder) -> None:
    plain, spread = minilm.tokenize(["one two three", "one" + " \n\t" * 50_000 + "two  three"])
    assert plain.ids.tolist() == spread.ids.tolist()


def test_half_a_surrogate_pair_is_read_as_a_question_mark(minilm: TextEncoder) -> None:
    broken, question = minilm.tokenize(["what\ud83d", "what?"])
    assert broken.ids.tolist() == question.ids.tolist()


def test_tokens_know_their_place_in_the_text(minilm: TextEncoder) -> None:
    text = "Wörter, 世界 unbelievably"
    (framed,) = minilm.tokenizer.tokens([text])
    assert [token.id for token in framed] == minilm.tokenize([text])[0].ids.tolist()
    assert [token.text for token in framed if token.special] == ["[CLS]", "[SEP]"]
    assert {(token.start, token.stop) for token in framed if token.special} == {(None, None)}
    (bare,) = minilm.tokenizer.tokens([text], add_special_tokens=False)
    assert bare == framed[1:-1]
    assert "".join(token.text for token in bare) == text.replace(" ", "")
    assert all(text.encode()[token.start : token.stop].decode() == token.text for token in bare)


def test_tokens_are_not_cut(minilm: TextEncoder) -> None:
    short, long = minilm.tokenizer.tokens(["word", "word " * 300])
    assert (len(short), len(long)) == (3, 302)


def test_tokens_that_continue_a_word_are_known(minilm):
    (tokenized,) = minilm.tokenize(["unbelievably tokenized words"])
    continues = minilm.tokenizer.continues()
    assert len(continues) == minilm.tokenizer.vocabulary_size
    begins = ~continues[tokenized.ids[1:-1]]
    assert begins.sum() == 3 < len(begins)
    assert begins[0]


def test_the_fingerprint_holds_all_that_decides_the_ids(minilm_folder, tmp_path):
    path = minilm_folder / "tokenizer.json"
    altered = tmp_path / "tokenizer.json"
    altered.write_text(path.read_text() + "\n")
    tokenizers = [
        TextTokenizer(path, max_seq_length=256, lowercase=False),
        TextTokenizer(path, max_seq_length=128, lowercase=False),
        TextTokenizer(path, max_seq_length=256, lowercase=True),
        TextTokenizer(altered, max_seq_length=256, lowercase=False),
    ]
    assert len({tokenizer.fingerprint for tokenizer in tokenizers}) == 4
    assert tokenizers[0].fingerprint == TextTokenizer(path, max_seq_length=256, lowercase=False).fingerprint

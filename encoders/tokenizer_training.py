"""A tokenizer of one's own: byte-level BPE in lower case, trained on the texts that it will be used on.

Pieces are made of bytes, so that a text in any script has tokens and none is unknown. A word begins with a piece that
says so, whatever stands before it: "(word" and "a word" have it in common. Every CJK character is a word. The same
texts, in whatever order, give the same bytes.

Source: Sennrich et al. 2016, "Neural Machine Translation of Rare Words with Subword Units"; over bytes: Radford et al.
2019, "Language Models are Unsupervised Multitask Learners".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from encoders.tokenizer import without_surrogates

#: Their numbers are their places. Padding first, as transformers has it where nobody says otherwise.
PADDING, OPENING, CLOSING = SPECIAL_TOKENS = ("[PAD]", "[CLS]", "[SEP]")
#: What there is before the first piece is learned.
SMALLEST_VOCABULARY = len(SPECIAL_TOKENS) + 256
# A piece that occurs once helps no other text.
_FEWEST_TIMES = 2
# In bytes. Without an end, the numbers or hashes of a file would become words that no other has.
_LONGEST_PIECE = 32


def train_tokenizer(texts: Iterable[Sequence[str]], *, vocabulary_size: int) -> Tokenizer:
    """Train on texts, which come some at a time. Returns a tokenizer of at most `vocabulary_size` tokens.

    It holds SMALLEST_VOCABULARY if no piece occurs twice. Raises whatever `texts` raises.
    """
    tokenizer = Tokenizer(models.BPE())
    # Without accents' removal, which only some languages bear.
    lower = normalizers.BertNormalizer(clean_text=True, handle_chinese_chars=True, strip_accents=False, lowercase=True)
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), lower])
    bytes_of_words = pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.BertPreTokenizer(), bytes_of_words])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(_sound(texts), trainer=_trainer(vocabulary_size))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{OPENING} $A {CLOSING}",
        pair=f"{OPENING} $A {CLOSING} $B:1 {CLOSING}:1",
        special_tokens=[(token, SPECIAL_TOKENS.index(token)) for token in (OPENING, CLOSING)],
    )
    return tokenizer


def _trainer(vocabulary_size: int) -> trainers.BpeTrainer:
    return trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        min_frequency=_FEWEST_TIMES,
        max_token_length=_LONGEST_PIECE,
        special_tokens=list(SPECIAL_TOKENS),
        # In an order of their own: the library's set of them has none.
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )


def _sound(texts: Iterable[Sequence[str]]) -> Iterator[list[str]]:
    for some in texts:
        yield [without_surrogates(text) for text in some]

"""The training benchmark trains what it says, and its floors say what was measured."""

from statistics import mean

import numpy as np
import pytest

from bench.train_contestants import Training, train
from bench.train_data import KINDS, texts, tokens_of
from bench.train_growth import Grown
from bench.train_results import Results, Speed, floors, growth_table, speed_table
from encoders.registry import locate
from encoders.tokenizer import TextTokenizer

MODEL = "sentence-transformers/all-MiniLM-L6-v2"


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return TextTokenizer.of_folder(locate(MODEL, None))


def test_pairs_are_short_or_have_a_tail_or_are_long(tokenizer) -> None:
    short, tail, long = (tokens_of(texts(kind, 500), tokenizer) for kind in KINDS)
    assert short[0] < 15
    assert short[1] <= 24
    assert tail[1] > 4 * tail[0]
    assert long[0] == long[1] == 120


def test_likeness_takes_the_steps_and_embeds_what_is_asked() -> None:
    training = Training(texts("short", 24), 8, 3, asked=("one text", "another"))
    trained = train("likeness", training)
    assert len(trained.seconds) == 2  # the first one warms up
    assert trained.vectors is not None
    assert np.allclose(np.linalg.norm(trained.vectors, axis=1), 1, atol=1e-5)


def test_tables_and_floors_say_what_was_measured() -> None:
    results = Results(
        speeds={"short": Speed(10, 12.0, 24, {"likeness": [[1.0, 1.0]], "peer": [[3.0, 3.0]]})},
        growth={(512, 0): Grown(512, 512, 1.0, 1000), (512, 32): Grown(512, 32, 1.25, 200)},
    )
    assert "10 (3.00×)" in speed_table(results)[2]
    assert "512" in growth_table(results)[2]
    found = {(floor.where.split(",")[0], floor.asked): floor for floor in floors(results, "bf16")}
    assert found["short pairs", "≥ 2.3× its pairs a second"].reached
    in_fp32 = floors(results, "fp32")
    assert in_fp32[0].asked == "≥ 1.4× its pairs a second"
    assert found["long tail of lengths pairs", "≥ 4× its pairs a second"].reached is None
    assert found["batch 512 in micro-batches of 32", "< 25 % of its memory"].measured == "20 %"
    assert found["batch 512 in micro-batches of 32", "≥ 0.65× its speed"].measured == "0.80×"
    assert mean(results.speeds["short"].seconds["peer"][0]) == 3

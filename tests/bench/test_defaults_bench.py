"""The benchmark of the defaults trains what its table says."""

import numpy as np

from bench.defaults import Line, in_words, parse, resolved, trained
from service.demo.retrieval import difference


def test_a_line_is_trained_with_one_choice_and_the_defaults() -> None:
    options = parse(["--pairs", "64", "--max-steps", "1"])
    usual, other = resolved({}, options), resolved({"temperature": 0.2}, options)
    assert in_words(usual) == "learning_rate 5e-05, batch_size 16, n_epochs 10, temperature 0.05"
    assert in_words(other) == "learning_rate 5e-05, batch_size 16, n_epochs 10, temperature 0.2"
    steps, reciprocal = trained(other, options)
    assert steps == 1
    assert np.all((reciprocal > 0) & (reciprocal <= 1))
    gained = difference("MRR", np.zeros_like(reciprocal), reciprocal)
    assert Line("temperature", "0.2", 1, gained).cells()[:4] == [
        "`temperature`", "0.2", "1", f"{reciprocal.mean():.3f}",
    ]  # fmt: skip

"""The benchmark of encoders from scratch trains what a job would, and its table says what was measured."""

import numpy as np

from api_schemas.methods import Method
from bench.scratch import Outcome, row, trained
from service.demo.docstrings import Pair

PAIRS = [
    Pair(f"{n:05b}".translate({48: "go ", 49: "stop "}), f"{n:05b}".translate({48: "no ", 49: "yes "}))
    for n in range(24)
]


def test_an_encoder_from_scratch_is_trained_and_asked() -> None:
    method = Method.model_validate(
        {
            "contrastive": {
                "model": {"scratch": {"layers": 1, "hidden_size": 64}},
                "hyperparameters": {"max_steps": 40, "n_epochs": 40, "batch_size": 8, "precision": "fp32"},
            }
        }
    )
    outcome = trained("scratch", method, PAIRS[:16], PAIRS[16:], 0, lambda *_: None)
    assert outcome.before.shape == outcome.after.shape == (8,)
    assert not np.array_equal(outcome.before, outcome.after)


def test_a_row_has_the_means_over_the_seeds() -> None:
    seeds = [Outcome(np.full(9, 0.1), np.full(9, after), seconds) for after, seconds in ((0.4, 10.0), (0.5, 20.0))]
    assert row("scratch", seeds) == "| scratch | 0.100 | 0.450 | +0.350, +0.350 … +0.350 | 0.100 | 15 |"

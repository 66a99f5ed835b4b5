import numpy as np

from service.demo.docstrings import Pair
from service.demo.examples import EXAMPLES, Embedded, choose, show
from service.demo.retrieval import Places, places


def at(*found):
    return Places(np.array(found) - 1, np.zeros(len(found), int))


def of_modules(*modules):
    return [Pair(f"{module} f", f"Sentence {index} of it.") for index, module in enumerate(modules)]


def test_the_greatest_gains_come_first_and_the_greatest_loss_last():
    chosen = choose(of_modules(*"abcdefg"), at(2, 90, 1, 4, 1, 8, 3), at(1, 1, 9, 1, 2, 1, 3))
    assert chosen == [1, 5, 3, 0, 2]


def test_modules_take_turns():
    chosen = choose(of_modules("a", "a", "a", "b", "c", "d"), at(9, 9, 9, 8, 7, 6), at(1, 1, 1, 1, 1, 1))
    assert chosen == [0, 3, 4, 5, 1]


def test_without_a_loser_nobody_is_called_one():
    chosen = choose(of_modules(*"abcdef"), at(2, 2, 2, 2, 2, 2), at(1, 1, 1, 1, 1, 2))
    assert chosen == [0, 1, 2, 3, 4]


def test_shows_each_example_under_both_models():
    pairs = of_modules(*"abcdef")
    eye = np.eye(6)
    before = Embedded(eye, eye[::-1], places(eye, eye[::-1]))
    after = Embedded(eye, eye, places(eye, eye))
    examples = show(pairs, before, after)
    assert len(examples) == EXAMPLES
    for example in examples:
        assert example.pair == pairs[example.answer]
        assert example.change == "gained"
        assert example.after.place == 1
        assert example.after.neighbours[0].index == example.answer

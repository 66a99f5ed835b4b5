import io

import pytest
from rich.console import Console

from service.demo.docstrings import Pair
from service.demo.examples import Example, View
from service.demo.report import Address, print_example, print_metrics, print_next_steps, print_verdict
from service.demo.retrieval import Difference, Neighbour


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=80)


def text_of(console):
    return console.file.getvalue()


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [(0.01, 0.2, "is better"), (-0.2, -0.1, "is worse"), (-0.1, 0.2, "could not be chance")],
)
def test_the_verdict_hangs_on_the_interval(console, low, high, words):
    print_verdict(console, Difference("MRR", 0.4, 0.4 + (low + high) / 2, low, high))
    assert words in text_of(console)


def test_metrics_are_a_row_each(console):
    print_metrics(console, [Difference("recall@1", 0.25, 0.5, 0.2, 0.3)])
    assert "recall@1 0.250 0.500 +0.250 +0.200 … +0.300" in " ".join(text_of(console).split())


def test_an_example_marks_the_right_answer_and_prints_markup_as_it_is(console):
    pairs = [Pair("a b", "Opens [bold]a[/bold] door."), Pair("c d", "Closes it again.")]
    before = View(2, [Neighbour(1, 0.9), Neighbour(0, 0.8)])
    after = View(1, [Neighbour(0, 0.9), Neighbour(1, 0.1)])
    print_example(console, Example(pairs[0], 0, before, after), pairs)
    assert "a b  (gained)" in text_of(console)
    assert text_of(console).count("✓") == 2
    assert "✓ 0.90 Opens [bold]a[/bold] door." in text_of(console)


def test_what_to_paste_is_not_wrapped(console):
    model = "ft:" + "x" * 120
    print_next_steps(console, Address("http://127.0.0.1:1/v1", "secret"), model)
    assert f'    model="{model}",\n' in text_of(console)
    assert "export OPENAI_API_KEY=secret\n" in text_of(console)


def test_the_python_to_paste_is_python(console):
    print_next_steps(console, Address("http://127.0.0.1:1/v1", start="likeness up"), "ft:m")
    assert "\n\nlikeness up\n" in text_of(console)
    snippets = [part.split("\nEOF")[0] for part in text_of(console).split("<<'EOF'\n")[1:]]
    assert len(snippets) == 2
    for snippet in snippets:
        compile(snippet, "snippet", "exec")

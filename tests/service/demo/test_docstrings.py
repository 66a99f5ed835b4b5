import json
import warnings
from pathlib import Path

import pytest

from service.demo.docstrings import (
    MAX_CHARACTERS,
    Dataset,
    Documented,
    as_pair,
    build_dataset,
    first_sentence,
    split,
    words,
    write_jsonl,
)


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return build_dataset()


def test_is_large_enough_to_learn_from_and_to_judge_by(dataset):
    assert len(dataset.train) >= 3000
    assert len(dataset.test) >= 500


def test_no_text_is_in_both_splits_or_twice_in_one(dataset):
    texts = [text.casefold() for pair in dataset.train + dataset.test for text in pair]
    assert len(texts) == len(set(texts))


def test_no_module_is_in_both_splits(dataset):
    train, test = ({pair.anchor.split()[0] for pair in part} for part in dataset)
    assert not train & test


def test_every_pair_is_clean_text(dataset):
    for pair in dataset.train + dataset.test:
        for text in pair:
            assert text == " ".join(text.split())
            assert text.isprintable()
            assert 0 < len(text) <= MAX_CHARACTERS


@pytest.mark.parametrize("anchor", ["math gcd", "shutil copytree", "builtins list append", "heapq heappush"])
def test_well_known_functions_are_there(dataset, anchor):
    assert anchor in {pair.anchor for pair in dataset.train + dataset.test}


@pytest.mark.parametrize("module", ["this", "antigravity", "idlelib", "test", "readline"])
def test_modules_with_side_effects_are_not(dataset, module):
    assert module not in {pair.anchor.split()[0] for pair in dataset.train + dataset.test}


def test_building_it_again_gives_the_same_without_a_word(dataset, capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = build_dataset()
    assert again == dataset
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("json.JSONEncoder.iterencode", "json json encoder iterencode"),
        ("os.path.is_dir", "os path is dir"),
        ("urllib.request.HTTPSHandler", "urllib request https handler"),
        ("base64.b64encode", "base64 b64encode"),
    ],
)
def test_names_are_split_into_words(name, expected):
    assert words(name) == expected


@pytest.mark.parametrize(
    ("docstring", "expected"),
    [
        ("Return the\n    largest item.  Raise if empty.", "Return the largest item."),
        ("Takes names, e.g. Paths, and joins them.", "Takes names, e.g. Paths, and joins them."),
        ("No full stop\n\nMore.", "No full stop"),
        ("range(stop) -> range object\nrange(start, stop) -> range object\n\nReturn numbers.", "Return numbers."),
        ("D.clear() -> None.  Remove all items from D.", "Remove all items from D."),
        ("open(name, mode=(1, 2)) -- Open a file.", "Open a file."),
        ("getpid()\n\nReturn the process id.", "Return the process id."),
        ("print(x) writes x to a file.", "print(x) writes x to a file."),
        ("Heading\n=======\n", "Heading ======="),
        ("-----\n\nBelow the line.", "Below the line."),
        ("dot(a, b) -> float", ""),
        ("unclosed(a, b", ""),
        ("", ""),
    ],
)
def test_first_sentence(docstring, expected):
    assert first_sentence(docstring) == expected


@pytest.mark.parametrize(
    "docstring", ["Close it.", "f(x) -> y", "A b c d e f.", "word " * 100, "Sets \x00 to the nul."]
)
def test_docstrings_that_say_nothing_are_left_out(docstring):
    assert as_pair(Documented("m.f", docstring)) is None


def test_a_text_known_from_training_is_kept_out_of_the_test():
    # "json" is held out and "asyncio" is not: the split depends on the name alone.
    documented = [
        Documented("asyncio.alpha", "Opens the very first door."),
        Documented("asyncio.beta", "opens the very first door"),
        Documented("json.gamma", "Opens the very first door."),
        Documented("json.delta", "Opens the second door."),
    ]
    train, test = split(documented)
    assert [pair.anchor for pair in train] == ["asyncio alpha"]
    assert [pair.anchor for pair in test] == ["json delta"]


def test_rows_are_json_lines(dataset, tmp_path: Path):
    path = tmp_path / "train.jsonl"
    write_jsonl(dataset.train[:7], path)
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert rows == [{"anchor": pair.anchor, "positive": pair.positive} for pair in dataset.train[:7]]

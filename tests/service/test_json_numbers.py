"""float32 arrays as JSON: the same numbers come back, whatever they are."""

import json

import numpy as np
import pytest

from service.json_numbers import json_numbers, json_rows

EXTREMES = [
    0.0,
    -0.0,
    1.0,
    -1.0,
    0.1,
    9.9999994,
    0.99999994,
    10.0,
    1e-5,
    1e-45,
    -1.1754944e-38,
    3.4028235e38,
    123456789,
]


def _read(rows: np.ndarray) -> np.ndarray:
    return np.array([json.loads(row) for row in json_rows(rows)], dtype=np.float64).astype(np.float32)


def test_every_kind_of_float32_comes_back_bit_by_bit() -> None:
    patterns = np.random.default_rng(0).integers(0, 2**32, 200_000, dtype=np.uint32).view(np.float32)
    numbers = np.concatenate([patterns[np.isfinite(patterns)], np.float32(EXTREMES)])[np.newaxis]
    np.testing.assert_array_equal(_read(numbers).view(np.uint32), numbers.view(np.uint32))


def test_powers_of_ten_and_their_neighbours_come_back() -> None:
    tens = np.float32([float(f"1e{exponent}") for exponent in range(-44, 39)])
    numbers = np.stack([np.nextafter(tens, np.float32(0)), tens, np.nextafter(tens, np.float32(3e38))])
    np.testing.assert_array_equal(_read(numbers), numbers)


def test_rows_keep_their_places() -> None:
    rows = np.arange(6, dtype=np.float32).reshape(3, 2)
    assert [json.loads(row) for row in json_rows(rows)] == [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]
    assert json_rows(np.zeros((0, 4), dtype=np.float32)) == []
    assert [json.loads(number) for number in json_numbers(rows[1])] == [2.0, 3.0]


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_what_json_does_not_have_is_refused(number: float) -> None:
    with pytest.raises(ValueError, match="NaN"):
        json_rows(np.array([[1.0, number]], dtype=np.float32))

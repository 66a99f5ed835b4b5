from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from workers.training.length_cells import in_order

LENGTHS = st.integers(1, 40) | st.sampled_from([512, 2**16, 2**40])


@given(lengths=st.lists(st.tuples(LENGTHS, LENGTHS | st.just(0)), max_size=60), size=st.integers(1, 9))
def test_every_unit_comes_once(lengths, size):
    asking, answering = np.array(lengths, dtype=np.int64).reshape(-1, 2).T
    assert sorted(in_order(asking, answering, size).tolist()) == list(range(len(lengths)))


def test_one_length_alone_is_sorted_by():
    asking = np.array([5, 1, 4, 2, 3, 6])
    assert asking[in_order(asking, np.zeros(6, dtype=np.int64), 2)].tolist() == [1, 2, 3, 4, 5, 6]


def test_units_that_are_alike_make_a_batch():
    asking, answering = np.array([9, 2, 9, 2, 2, 9, 2, 9]), np.array([9, 9, 2, 2, 9, 2, 2, 9])
    order = in_order(asking, answering, 2)
    cells = [tuple(zip(asking[cell].tolist(), answering[cell].tolist(), strict=True)) for cell in np.split(order, 4)]
    assert all(one == other for one, other in cells)
    assert len(set(cells)) == 4

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.demo.events import Event, parse

STREAM = (
    ': hello\n\nretry: 500\n\nid: 1\nevent: message\ndata: {"message": "a\u2028b"}\n\n'
    ': beat\n\nid: 2\r\nevent: done\r\ndata: {"error": null}\r\n\r\n'
).encode()
EVENTS = [Event("message", "1", {"message": "a\u2028b"}), Event("done", "2", {"error": None})]


@given(st.lists(st.integers(0, len(STREAM)), max_size=8))
def test_events_are_the_same_however_the_bytes_arrive(cuts):
    edges = [0, *sorted(cuts), len(STREAM)]
    chunks = [STREAM[start:end] for start, end in pairwise(edges)]
    assert list(parse(chunks)) == EVENTS


@pytest.mark.parametrize("end", [b"", b"id: 3\n", b'data: {"cut": tr'])
def test_an_event_cut_off_by_the_end_is_none(end):
    assert list(parse([STREAM, end])) == EVENTS

from __future__ import annotations

import random
from collections import Counter

from tests.chaos.controls import CONTROLS
from tests.chaos.deck import Deck, quotas
from tests.chaos.faults import ROWS
from tests.chaos.faults.row import Row
from tests.chaos.storm import NUMBER as STORM
from tests.chaos.tools import Tools


def test_seeds_together_fire_a_quarter_of_each_row_or_all_of_it() -> None:
    for full, share in ((False, 0.25), (True, 1.0)):
        fired = Counter[int]()
        for index in range(3):
            fired.update(quotas(ROWS, full=full, seed_index=index, seeds=3))
        assert all(row.full * share <= fired[number] < row.full * share + 1 for number, row in ROWS.items())


def test_every_row_of_the_table_is_there() -> None:
    assert sorted([*ROWS, STORM]) == [*range(1, 20), 24, 25]


def test_the_same_seed_deals_the_same_cards_and_all_kinds_come_in_turn() -> None:
    row = ROWS[1]
    quota = {1: len(row.kinds) * row.per_shot}

    first, second, other = (
        [card.kind for card in Deck(quota, random.Random(seed), Tools()).deal({})] for seed in (1, 1, 2)
    )

    assert first == second != other
    assert sorted(first) == sorted(row.kinds)


def test_only_what_has_not_fired_is_dealt_again() -> None:
    deck = Deck({2: 4, 8: 1}, random.Random(1), Tools())

    assert Counter(card.row.number for card in deck.deal({2: 3, 8: 1})) == {2: 1}


def test_controls_name_kinds_of_the_table() -> None:
    assert [kind for control in CONTROLS for row, kinds in control.rows.items() for kind in kinds
            if kind not in ROWS[row].kinds] == []  # fmt: skip


def test_what_a_kind_needs_or_is_alone_for_names_a_kind() -> None:
    def is_known(row: Row) -> bool:
        return set(row.alone) | set(row.needs) <= set(row.kinds)

    assert all(map(is_known, ROWS.values()))

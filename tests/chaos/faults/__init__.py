"""The faults, a module for each family. `ROWS` is the fault table: what is done, how often, and what it takes."""

from __future__ import annotations

from tests.chaos.faults import (
    api,
    clocks,
    deliveries,
    disk,
    files,
    leaders,
    memory,
    network,
    postgres,
    trainers,
    upgrades,
    valkey,
    workers,
)
from tests.chaos.faults.row import Row

_FAMILIES = (
    trainers, workers, memory, deliveries, api, postgres, network, valkey, disk, files, clocks, leaders, upgrades,
)  # fmt: skip
#: By number, in the order of the fault table.
ROWS: dict[int, Row] = {
    row.number: row for row in sorted((row for family in _FAMILIES for row in family.ROWS), key=lambda row: row.number)
}

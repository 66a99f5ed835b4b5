"""A driver that runs a fleet under load, breaks it in every way of the fault table, and judges from outside.

    python -m tests.chaos --help

From top to bottom: `seedrun` runs one seed. It starts a `fleet` behind `proxies`, has `load` order trainings of a few
`specs`, fires `faults` from a `deck`, and asks the `judge`, who has what clients were told (`history`), what PostgreSQL
holds (`ledger`), the files (`artifacts`), and what was seen all the while (`watch`).
"""

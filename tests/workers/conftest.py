from tests.service.conftest import pairs_file, shared  # noqa: F401 — fixtures

"""Identifiers: a prefix that says what it names, and 96 random bits."""

import secrets


def new_id(prefix: str) -> str:
    """For example `file-5f1c…`, 24 hexadecimal digits."""
    return f"{prefix}-{secrets.token_hex(12)}"

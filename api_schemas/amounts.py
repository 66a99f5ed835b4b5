"""Amounts as people read them."""


def number(count: int) -> str:
    """A count: 12 345."""
    return f"{count:,}".replace(",", " ")


def percent(share: float) -> str:
    """A share from 0 to 1; what is there is never 0 %."""
    return "under 1 %" if 0 < share < 0.01 else f"{100 * share:.0f} %"

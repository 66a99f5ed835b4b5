"""How often something is written whose writing keeps a training waiting."""

from __future__ import annotations


def pause_after(took: float, *, share: float, least: float, most: float) -> float:
    """Seconds until the next time, so that it takes such a share of the time if it takes as long as the last one did.

    Within bounds, whatever it took: `least` seconds, and `most`.
    """
    return min(max(least, took / share), most)

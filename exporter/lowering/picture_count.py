"""How many pictures to measure on: many where a network is small, fewer where each costs much."""

from __future__ import annotations

MOST_PICTURES = 128
MOST_MACS = 5 * 10**11
"""In multiply-accumulates, what all pictures but the fewest may cost: seconds."""


def affordable_pictures(macs: float, fewest: int) -> int:
    """How many pictures to measure on, where each costs so many multiply-accumulates; at least `fewest`."""
    return int(min(MOST_PICTURES, max(fewest, MOST_MACS / max(1.0, macs))))

"""How many pictures to measure on: many where a network is small, fewer where each costs much."""

from __future__ import annotations

FEWEST_PICTURES, MOST_PICTURES = 16, 128
MOST_MACS = 5 * 10**11
"""In multiply-accumulates, what all pictures but the fewest may cost: seconds."""


def affordable_pictures(macs: float) -> int:
    """How many pictures to measure on, where each costs so many multiply-accumulates."""
    return int(min(MOST_PICTURES, max(FEWEST_PICTURES, MOST_MACS / max(1.0, macs))))

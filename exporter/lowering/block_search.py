"""Find few blocks whose return to FP16 brings a network inside its budget, at a small price in INT8 work.

1. Rank the blocks by damage for the price: what a block's INT8 does to the outputs
   (`exporter.lowering.sensitivity`), over the multiply-accumulates that returning it takes out of INT8.
2. Bisect on how many of the first in rank have to return (Pandey et al. 2023, arXiv 2302.05397).
3. Prune: give each returned block back to INT8, the dearest first, where the network stays inside without it.

The ranking holds to first order only, so the third step, which tries for itself, is the one that is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from runtimes.block_precision import BlockDamage

Returned = frozenset[str]
"""The names of the blocks in FP16."""


def candidates(blocks: Sequence[BlockDamage]) -> tuple[BlockDamage, ...]:
    """The blocks that have something in INT8, the largest damage for its price first."""
    return tuple(sorted((one for one in blocks if one.macs), key=lambda one: -one.damage / one.macs))


def most_evaluations(count: int) -> int:
    """How many choices of `count` blocks a search tries at most: none, all, the bisection, and the pruning."""
    return 2 + (count - 1).bit_length() + count - 1


def find_returned(ranked: Sequence[BlockDamage], is_inside: Callable[[Returned], bool]) -> Returned | None:
    """Find a small set of blocks to return to FP16; None where not even the return of all brings the network inside.

    Args:
        ranked: as `candidates` gives them.
        is_inside: whether the network is inside its budget with these blocks in FP16.
    """
    names = [one.name for one in ranked]
    if is_inside(frozenset()):
        return frozenset()
    if not is_inside(frozenset(names)):
        return None
    outside, inside = 0, len(names)
    while inside - outside > 1:
        middle = (outside + inside) // 2
        if is_inside(frozenset(names[:middle])):
            inside = middle
        else:
            outside = middle
    found = frozenset(names[:inside])
    # Without the last in rank the network is outside, as the bisection saw.
    for one in sorted(ranked[: inside - 1], key=lambda one: -one.macs):
        if is_inside(found - {one.name}):
            found -= {one.name}
    return found

"""The search for blocks to return: bisection along the rank, then pruning, and its number of evaluations."""

from __future__ import annotations

import numpy as np
import pytest

from exporter.lowering.block_search import Returned, candidates, find_returned, most_evaluations
from runtimes.block_precision import BlockDamage


def blocks(count: int, seed: int = 0) -> tuple[BlockDamage, ...]:
    chance = np.random.default_rng(seed)
    return tuple(
        BlockDamage(f"b{place}", float(chance.random()), int(chance.integers(1, 100))) for place in range(count)
    )


class Judge:
    """Inside where these blocks are in FP16; counts what it is asked."""

    def __init__(self, *needed: str) -> None:
        self.needed, self.asked = frozenset(needed), list[Returned]()

    def __call__(self, returned: Returned) -> bool:
        self.asked.append(returned)
        return self.needed <= returned


def test_blocks_are_ranked_by_damage_for_the_price_and_those_without_int8_are_none() -> None:
    ranked = candidates(
        [BlockDamage("dear", 4.0, 8), BlockDamage("head", 9.0, 0), BlockDamage("cheap", 3.0, 2), BlockDamage("b", 0, 1)]
    )
    assert [one.name for one in ranked] == ["cheap", "dear", "b"]


def test_a_network_that_is_inside_takes_one_evaluation() -> None:
    judge = Judge()
    assert find_returned(candidates(blocks(9)), judge) == frozenset()
    assert judge.asked == [frozenset()]


def test_where_not_even_the_return_of_all_helps_there_is_no_choice() -> None:
    judge = Judge("somewhere else")
    assert find_returned(candidates(blocks(9)), judge) is None
    assert len(judge.asked) == 2


@pytest.mark.parametrize("count", [1, 2, 3, 9, 17, 52])
def test_exactly_the_blocks_that_are_needed_are_found_within_the_evaluations_that_were_announced(count: int) -> None:
    chance = np.random.default_rng(count)
    for seed in range(20):
        ranked = candidates(blocks(count, seed))
        needed = chance.choice(count, size=min(count, 1 + seed % 4), replace=False)
        judge = Judge(*(f"b{place}" for place in needed))
        assert find_returned(ranked, judge) == judge.needed
        assert len(judge.asked) <= most_evaluations(count)
        assert len(set(judge.asked)) == len(judge.asked)


def test_the_dearest_block_is_given_back_first() -> None:
    """Of two that would each do, the cheaper one stays."""
    ranked = candidates([BlockDamage("dear", 100, 10), BlockDamage("cheap", 9, 1), BlockDamage("last", 0.1, 1)])
    found = find_returned(ranked, lambda returned: "last" in returned and ("dear" in returned or "cheap" in returned))
    assert found == frozenset({"cheap", "last"})

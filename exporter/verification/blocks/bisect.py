"""Find the fewest blocks whose return to FP32 brings a bundle inside its budget."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from itertools import combinations
from typing import Any, Literal, NamedTuple

import onnx
from numpy.typing import NDArray

from exporter.graph.blocks import Block, blocks
from exporter.graph.mixed import with_fp32_nodes
from exporter.verification.blocks.both_sides import both_sides_of
from exporter.verification.blocks.drift import MOST_IMAGES
from exporter.verification.blocks.findings import Bisection
from runtimes.backends.onnxruntime import OnnxRuntime
from runtimes.bundle import Bundle
from runtimes.errors import PlanError
from runtimes.parity.budget import Budget
from runtimes.parity.compare import compare_outputs
from runtimes.parity.measures import Comparison
from runtimes.progress import Progress, silent

MOST_BLOCKS_FOR_PAIRS = 12
"""That makes up to 66 pairs, a graph made and run for each; a ResNet-50 has 18 blocks and 153 pairs."""

Compare = Callable[[frozenset[int]], Comparison]
"""The bundle's outputs against the reference's, with the blocks at these places in FP32."""


class SmallSet(NamedTuple):
    """Blocks by their places, and whether it is known that no smaller set does."""

    blocks: frozenset[int]
    is_smallest: bool


def bisect_blocks(
    bundle: Bundle,
    inputs: NDArray[Any],
    reference: Mapping[str, NDArray[Any]],
    budget: Budget,
    announce: Progress = silent,
) -> Bisection:
    """Find the blocks whose return to FP32 brings a bundle inside a budget.

    A budget with a confidence is judged by the figures measured: these few images could not decide it.

    Args:
        inputs: (images, ...), as the bundle's graph takes them; the first `MOST_IMAGES` are used.
        reference: the FP32 program's outputs for them, by name.
        announce: called before each graph is run.

    Raises:
        PlanError: an FP32 bundle has nothing to return.
        BundleError: no reference, or one that `model.onnx` was not made from.
        BackendUnavailable: this onnxruntime would run `model.onnx` wrongly.
    """
    budget = replace(budget, confidence=None)
    inputs, reference = inputs[:MOST_IMAGES], {name: values[:MOST_IMAGES] for name, values in reference.items()}
    announce("make the FP32 graph")
    original = both_sides_of(bundle, inputs)
    if original.simulation is None:
        raise PlanError(
            f"expected a bundle of another precision than {bundle.manifest.precision}, "
            "which has nothing to return to FP32"
        )
    simulation, parts = original.simulation, [block for block in blocks(original.graph.graph) if block.nodes]
    tried: dict[frozenset[int], Comparison] = {}

    def compare(returned: frozenset[int]) -> Comparison:
        if returned not in tried:
            model = with_fp32_nodes(original.graph, simulation, _nodes(original.graph.graph, parts, returned))
            with OnnxRuntime.from_bytes(model.SerializeToString()) as runtime:
                tried[returned] = compare_outputs(reference, runtime.run({runtime.inputs[0].name: inputs}), budget)
        return tried[returned]

    names, every = tuple(part.name for part in parts), frozenset(range(len(parts)))

    def answer(
        verdict: Literal["inside", "mended", "not the precision"], returned: frozenset[int], *, smallest: bool = False
    ) -> Bisection:
        ratios = [tried[one].sqnr_db for one in _singles(every)] if verdict == "mended" else []
        after = compare(returned or every) if verdict != "inside" else None
        return Bisection(
            images=len(inputs),
            runs=len(tried),
            blocks=names,
            verdict=verdict,
            returned=tuple(names[place] for place in sorted(returned)),
            smallest=smallest,
            lowered=compare(frozenset()),
            mended=after,
            ratios_db=tuple(ratios),
        )

    if compare(frozenset()).ok:
        return answer("inside", frozenset())
    if not compare(every).ok:
        return answer("not the precision", frozenset())
    found, is_smallest = find_small_set(len(parts), compare, announce)
    return answer("mended", found, smallest=is_smallest)


def find_small_set(count: int, compare: Compare, announce: Progress = silent) -> SmallSet:
    """Find a small set of `count` blocks whose return to FP32 brings the bundle inside its budget, as that of all does.

    Where one block is enough, the one that gives the highest signal-to-noise ratio. Else:

    1. rank the blocks by the noise that each adds when it alone is lowered;
    2. find by halving how many of the noisiest are enough;
    3. take out blocks as long as one can be spared;
    4. where more than two are left, and there are few blocks in all, try all pairs.
    """
    every = frozenset(range(count))
    singles = _compare_each("return each block", _singles(every), compare, announce)
    mending = [one for one in singles if singles[one].ok]
    if mending:
        return SmallSet(max(mending, key=lambda one: singles[one].sqnr_db), True)
    alone = _compare_each("lower each block alone", [every - one for one in _singles(every)], compare, announce)
    ranked = sorted(every, key=lambda place: alone[every - {place}].sqnr_db)
    announce("narrow down")
    failing, enough = 1, count
    while enough - failing > 1:
        middle = (failing + enough) // 2
        if compare(frozenset(ranked[:middle])).ok:
            enough = middle
        else:
            failing = middle
    found = _prune(ranked[:enough], compare)
    if len(found) == 2 or count > MOST_BLOCKS_FOR_PAIRS:
        return SmallSet(found, len(found) == 2)
    pairs = [frozenset(pair) for pair in combinations(ranked, 2)]
    tried = _compare_each("return each pair", pairs, compare, announce)
    best = max(pairs, key=lambda pair: (tried[pair].ok, tried[pair].sqnr_db))
    return SmallSet(best, True) if tried[best].ok else SmallSet(found, len(found) == 3)


def _prune(ranked: list[int], compare: Compare) -> frozenset[int]:
    """Take out blocks, the last in rank first, until none can be spared."""
    left = list(ranked)
    while True:
        spare = next((place for place in reversed(left) if compare(frozenset(left) - {place}).ok), None)
        if spare is None:
            return frozenset(left)
        left.remove(spare)


def _compare_each(
    step: str, sets: Iterable[frozenset[int]], compare: Compare, announce: Progress
) -> dict[frozenset[int], Comparison]:
    wanted, found = list(sets), {}
    for done, one in enumerate(wanted):
        announce(step, done, len(wanted))
        found[one] = compare(one)
    return found


def _singles(every: frozenset[int]) -> list[frozenset[int]]:
    return [frozenset({place}) for place in sorted(every)]


def _nodes(graph: onnx.GraphProto, parts: list[Block], returned: frozenset[int]) -> set[str]:
    """The names of the nodes of the blocks at these places."""
    return {graph.node[place].name for part in returned for place in parts[part].nodes}

"""Which blocks have to compute in FP32 for a bundle to be inside its budget? The fewest of them that can be found."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import combinations
from typing import Any, Literal

import onnx
from numpy.typing import NDArray

from exporter.graph.blocks import Block, blocks
from exporter.graph.mixed import hybrid
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
"""Up to 66 pairs, each of which a graph is made and run for; a ResNet-50 has 18 blocks and 153 pairs."""

Compared = Callable[[frozenset[int]], Comparison]


def bisect_blocks(
    bundle: Bundle,
    inputs: NDArray[Any],
    reference: Mapping[str, NDArray[Any]],
    budget: Budget,
    announce: Progress = silent,
) -> Bisection:
    """Find the blocks whose return to FP32 brings a bundle inside a budget.

    Args:
        inputs: (images, ...), as the bundle's graph takes them; the first `MOST_IMAGES` are used.
        reference: the FP32 program's outputs for them, by name.
        announce: told of each graph that is run.

    Raises:
        PlanError: an FP32 bundle has nothing to return.
        BundleError: no `reference.pt2`, or one that `model.onnx` was not made from.
        BackendUnavailable: this onnxruntime would run `model.onnx` wrongly.
    """
    inputs, reference = inputs[:MOST_IMAGES], {name: values[:MOST_IMAGES] for name, values in reference.items()}
    announce("make the FP32 graph")
    original = both_sides_of(bundle, inputs)
    if original.simulation is None:
        raise PlanError(
            f"expected a bundle of another precision than {bundle.manifest.precision}, which has nothing to return to FP32"
        )
    simulation, parts = original.simulation, [block for block in blocks(original.graph.graph) if block.nodes]
    tried: dict[frozenset[int], Comparison] = {}

    def compared(returned: frozenset[int]) -> Comparison:
        if returned not in tried:
            model = hybrid(original.graph, simulation, _nodes(original.graph.graph, parts, returned))
            with OnnxRuntime.from_bytes(model.SerializeToString()) as runtime:
                tried[returned] = compare_outputs(reference, runtime.run({runtime.inputs[0].name: inputs}), budget)
        return tried[returned]

    names, every = tuple(part.name for part in parts), frozenset(range(len(parts)))

    def answer(
        verdict: Literal["inside", "mended", "not the precision"], returned: frozenset[int], *, smallest: bool = False
    ) -> Bisection:
        ratios = [tried[one].sqnr_db for one in _singles(every)] if verdict == "mended" else []
        after = compared(returned or every) if verdict != "inside" else None
        chosen = tuple(names[place] for place in sorted(returned))
        return Bisection(
            len(inputs), len(tried), names, verdict, chosen, smallest, compared(frozenset()), after, tuple(ratios)
        )

    if compared(frozenset()).ok:
        return answer("inside", frozenset())
    if not compared(every).ok:
        return answer("not the precision", frozenset())
    found, smallest = find_smallest_set(len(parts), compared, announce)
    return answer("mended", found, smallest=smallest)


def find_smallest_set(count: int, compared: Compared, announce: Progress = silent) -> tuple[frozenset[int], bool]:
    """A small set of `count` blocks whose return mends, where that of all does, and whether it is known that no smaller one does.

    One block where one is enough: of several, that with the highest signal-to-noise ratio. Else the blocks are ranked by the noise that each
    makes when it alone is lowered, the shortest run of the worst that mends is found by halving, and blocks are taken out as long as one can be.
    Where that leaves more than two of few blocks, all pairs are tried.
    """
    every = frozenset(range(count))
    singles = _each("return each block", _singles(every), compared, announce)
    mending = [one for one in singles if singles[one].ok]
    if mending:
        return max(mending, key=lambda one: singles[one].sqnr_db), True
    alone = _each("lower each block alone", [every - one for one in _singles(every)], compared, announce)
    ranked = sorted(every, key=lambda place: alone[every - {place}].sqnr_db)
    announce("narrow down")
    failing, enough = 1, count
    while enough - failing > 1:
        middle = (failing + enough) // 2
        if compared(frozenset(ranked[:middle])).ok:
            enough = middle
        else:
            failing = middle
    found = _pruned(ranked[:enough], compared)
    if len(found) == 2 or count > MOST_BLOCKS_FOR_PAIRS:
        return found, len(found) == 2
    pairs = [frozenset(pair) for pair in combinations(ranked, 2)]
    tried = _each("return each pair", pairs, compared, announce)
    best = max(pairs, key=lambda pair: (tried[pair].ok, tried[pair].sqnr_db))
    return (best, True) if tried[best].ok else (found, len(found) == 3)


def _pruned(ranked: list[int], compared: Compared) -> frozenset[int]:
    """What is left when no block can be taken out; the last in rank goes first."""
    left = list(ranked)
    while True:
        spare = next((place for place in reversed(left) if compared(frozenset(left) - {place}).ok), None)
        if spare is None:
            return frozenset(left)
        left.remove(spare)


def _each(
    step: str, sets: Iterable[frozenset[int]], compared: Compared, announce: Progress
) -> dict[frozenset[int], Comparison]:
    wanted, found = list(sets), {}
    for done, one in enumerate(wanted):
        announce(step, done, len(wanted))
        found[one] = compared(one)
    return found


def _singles(every: frozenset[int]) -> list[frozenset[int]]:
    return [frozenset({place}) for place in sorted(every)]


def _nodes(graph: onnx.GraphProto, parts: list[Block], returned: frozenset[int]) -> set[str]:
    return {graph.node[place].name for part in returned for place in parts[part].nodes}

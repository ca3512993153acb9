"""Which blocks to return to FP32: hybrids that are what they say, and the search for the fewest, in spoilt bundles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from spoilt import BLOCKS, spoilt, with_file

from exporter.graph.blocks import blocks
from exporter.graph.mixed import with_fp32_nodes
from exporter.graph.probe import inner_tensors
from exporter.graph.trace import program_from_module, save_program
from exporter.models.sources.cifar import CifarResNet
from exporter.verification.blocks.bisect import MOST_BLOCKS_FOR_PAIRS, bisect_blocks, find_small_set
from exporter.verification.blocks.both_sides import BothSides, both_sides_of
from exporter.verification.blocks.findings import Bisection
from exporter.verification.report.lines import bisection_lines
from runtimes import Bundle
from runtimes.errors import BundleError, PlanError
from runtimes.parity.budget import Budget
from runtimes.parity.flips import Flips
from runtimes.parity.golden import golden_arrays
from runtimes.parity.measures import Comparison

FORMS: list[tuple[str, str | None, str | None]] = [
    ("fp16", None, None),
    ("bf16", None, None),
    ("int8", None, None),
    ("int8", "stages", "crop"),
]


def searched(bundle: Bundle, **options: Any) -> Bisection:
    return bisect_blocks(bundle, *golden_arrays(bundle), bundle.manifest.parity.budget, **options)


def ran(model: onnx.ModelProto, inputs: NDArray[Any]) -> list[NDArray[Any]]:
    return list(inner_tensors(model, [value.name for value in model.graph.output], inputs).values())


@pytest.fixture(params=FORMS, ids=lambda form: "-".join(map(str, form)))
def sides(request: pytest.FixtureRequest, shipped_bundle: Any) -> tuple[BothSides, onnx.ModelProto, NDArray[Any]]:
    precision, features, uint8 = request.param
    bundle = shipped_bundle(precision, features, uint8=uint8)
    inputs = golden_arrays(bundle)[0]
    original = both_sides_of(bundle, inputs)
    assert original.simulation is not None
    return original, original.simulation, inputs


def test_hybrids_are_the_simulation_at_one_end_and_the_fp32_graph_at_the_other(
    sides: tuple[BothSides, onnx.ModelProto, NDArray[Any]],
) -> None:
    original, simulation, inputs = sides
    before = original.graph.SerializeToString(deterministic=True), simulation.SerializeToString(deterministic=True)
    none = with_fp32_nodes(original.graph, simulation, ())
    assert all(np.array_equal(*pair) for pair in zip(ran(none, inputs), ran(simulation, inputs), strict=True))
    every = with_fp32_nodes(original.graph, simulation, {node.name for node in original.graph.graph.node})
    for found, expected in zip(ran(every, inputs), ran(original.graph, inputs), strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * np.abs(expected).max())
    assert len(every.graph.node) == len(original.graph.graph.node) + len(
        original.graph.graph.output
    )  # nothing of the lowered graph is left
    assert before == (
        original.graph.SerializeToString(deterministic=True),
        simulation.SerializeToString(deterministic=True),
    )


def test_every_hybrid_is_a_valid_graph_in_which_its_blocks_and_no_others_are_fp32(
    sides: tuple[BothSides, onnx.ModelProto, NDArray[Any]],
) -> None:
    original, simulation, inputs = sides
    graph = original.graph.graph
    lowered = ran(simulation, inputs)
    parts = [block for block in blocks(graph) if block.nodes]
    for chosen in [*([block] for block in parts), parts[::2], parts[3:6]]:
        names = {graph.node[place].name for block in chosen for place in block.nodes}
        mixed = with_fp32_nodes(original.graph, simulation, names)
        onnx.checker.check_model(mixed, full_check=True)
        by_side = {
            side: {node.name.removeprefix(side) for node in mixed.graph.node if node.name.startswith(side)}
            for side in ("fp32/", "lowered/")
        }
        assert by_side["fp32/"] == names
        assert {node.name for node in graph.node} & by_side["lowered/"] == {node.name for node in graph.node} - names
        assert any(not np.array_equal(*pair) for pair in zip(ran(mixed, inputs), lowered, strict=True))


def test_a_bundle_inside_its_budget_has_nothing_to_return(shipped_bundle: Any) -> None:
    found = searched(shipped_bundle("int8"))
    assert (found.verdict, found.returned, found.runs, found.blocks, found.mended) == ("inside", (), 1, BLOCKS, None)
    assert "within the budget when rounded as a device does, so no block needs FP32;" in bisection_lines(found)[-2]


@pytest.mark.parametrize(
    ("precision", "block", "features", "uint8"),
    [
        ("fp16", "layer1.2", None, None),
        ("bf16", "stem", None, None),
        ("int8", "layer3.0", None, None),
        ("int8", "layer2.1", "stages", "crop"),
    ],
)
def test_one_wrong_block_is_the_one_to_return(
    shipped_bundle: Any, tmp_path: Path, precision: str, block: str, features: str | None, uint8: str | None
) -> None:
    weight = "conv1.weight" if block == "stem" else f"{block}.conv2.weight"
    bundle = shipped_bundle(precision, features, uint8=uint8)
    told: list[tuple[str, int, int]] = []

    def announce(step: str, done: int = 0, total: int = 0) -> None:
        told.append((step, done, total))

    found = searched(
        spoilt(bundle, tmp_path / "bundle", {f"{weight}.scale" if precision == "int8" else weight: 4.0}),
        announce=announce,
    )
    assert (found.verdict, found.returned, found.smallest) == ("mended", (block,), True)
    assert (found.lowered.ok, found.mended is not None and found.mended.ok) == (False, True)
    assert found.runs == len(found.blocks) + 2
    assert int(np.argmax(found.ratios_db)) == found.blocks.index(block)
    assert told[0] == ("make the FP32 graph", 0, 0)
    assert told[-1] == ("return each block", len(found.blocks) - 1, len(found.blocks))
    lines = bisection_lines(found)
    assert [line.split()[0] for line in lines if not line.startswith(" ")] == ["parity", "lowered", "mended", "bisect"]
    assert lines[-2] == f"bisect       {block} in FP32 mends it; no smaller set does"
    assert msgspec.to_builtins(found)["returned"] == (block,)


def test_two_wrong_blocks_are_the_two_to_return(shipped_bundle: Any, tmp_path: Path) -> None:
    bundle = spoilt(
        shipped_bundle("int8"),
        tmp_path / "bundle",
        {"layer1.1.conv2.weight.scale": 6.0, "layer2.2.conv1.weight.scale": 6.0},
    )
    found = searched(bundle)
    assert (found.verdict, found.returned, found.smallest) == ("mended", ("layer1.1", "layer2.2"), True)
    assert bisection_lines(found)[-2] == "bisect       layer1.1, layer2.2 in FP32 mend it; no smaller set does"
    assert bisection_lines(found)[-1].strip() == f"{found.runs} graphs run over 32 images"


def test_a_fault_that_is_not_in_the_precision_is_said_to_be_elsewhere(shipped_bundle: Any, tmp_path: Path) -> None:
    torch.manual_seed(1)
    save_program(
        program_from_module(CifarResNet(3, 1, 10), (1, 28, 28)), tmp_path / "other.pt2"
    )  # of the same form, with other weights
    found = searched(
        with_file(shipped_bundle("fp16"), tmp_path / "bundle", "reference.pt2", (tmp_path / "other.pt2").read_bytes())
    )
    assert found.verdict == "inside"  # what is lowered is what the outputs are held against
    bundle = shipped_bundle("fp16")
    inputs, golden = golden_arrays(bundle)
    found = bisect_blocks(bundle, inputs, {"logits": golden["logits"] * np.float32(1.5)}, bundle.manifest.parity.budget)
    assert (found.verdict, found.returned, found.runs) == ("not the precision", (), 2)
    assert found.mended is not None
    assert not found.mended.ok
    assert (
        "all 11 blocks in FP32 are out of budget too (largest relative error 3.33e-01, budget <= 0.01)"
        in bisection_lines(found)[-2]
    )


def test_what_cannot_be_bisected_is_refused(shipped_bundle: Any, tmp_path: Path) -> None:
    with pytest.raises(
        PlanError, match="expected a bundle of another precision than fp32, which has nothing to return to FP32"
    ):
        searched(shipped_bundle("fp32"))
    with pytest.raises(
        BundleError, match="has no reference.pt2 to follow the blocks of; export it again without --no-reference"
    ):
        searched(with_file(shipped_bundle("fp16"), tmp_path / "bundle", "reference.pt2", None))


def judged(ok: bool, ratio: float) -> Comparison:
    return Comparison(ok, True, 0.0, 0.0, 0.0, 1.0, ratio, 1.0, 1.0, Flips(0, 0))


def additive(noises: list[float], allowed: float) -> Callable[[frozenset[int]], Comparison]:
    """A network whose blocks' noises add up."""

    def compared(returned: frozenset[int]) -> Comparison:
        left = sum(noise for place, noise in enumerate(noises) if place not in returned)
        return judged(left <= allowed, -left)

    return compared


@pytest.mark.parametrize("seed", range(20))
def test_the_search_finds_the_smallest_set_where_noises_add_up(seed: int) -> None:
    chance = np.random.default_rng(seed)
    count = int(chance.integers(1, 30))
    noises = list(chance.exponential(size=count) ** 2)
    compared = additive(noises, float(chance.uniform(0, 0.9)) * sum(noises))
    found, smallest = find_small_set(count, compared)
    ranked = sorted(range(count), key=lambda place: -noises[place])
    fewest = next(size for size in range(1, count + 1) if compared(frozenset(ranked[:size])).ok)
    assert compared(found).ok
    assert len(found) == fewest
    assert smallest == (fewest <= (3 if count <= MOST_BLOCKS_FOR_PAIRS else 2))


@pytest.mark.parametrize("seed", range(20))
def test_of_any_network_what_is_found_mends_and_nothing_can_be_taken_out(seed: int) -> None:
    """Blocks that mend only together, or not beside certain others: nothing like what the search supposes."""
    chance = np.random.default_rng(seed)
    count = int(chance.integers(3, 9))
    every = frozenset(range(count))
    verdicts = {
        frozenset(one): bool(chance.random() < 0.2)
        for size in range(2, count)
        for one in combinations(range(count), size)
    }

    def compared(returned: frozenset[int]) -> Comparison:
        return judged(returned == every or verdicts.get(returned, False), float(len(returned)))

    found, smallest = find_small_set(count, compared)
    assert compared(found).ok
    assert not any(compared(found - {place}).ok for place in found)
    fewest = min(len(one) for one in (every, *verdicts) if compared(one).ok)
    if smallest:
        assert len(found) == fewest
    if fewest == 2:
        assert (len(found), smallest) == (2, True)


def test_a_set_that_may_not_be_the_smallest_is_not_said_to_be() -> None:
    found, smallest = find_small_set(20, additive([1.0] * 20, 15.0))
    assert (len(found), smallest) == (5, False)
    measured = judged(True, 30.0)
    bisection = Bisection(
        32, 50, ("a", "b", "c", "d"), "mended", ("a", "b", "c"), False, replace(measured, ok=False), measured, ()
    )
    assert bisection_lines(bisection)[-2].endswith(
        "a, b, c in FP32 mend it; each of these is needed; another, smaller set may exist"
    )


def test_a_budget_may_be_another_than_the_bundles_own(shipped_bundle: Any) -> None:
    bundle = shipped_bundle("fp16")
    strict = Budget(own_error=1e-2, min_sqnr_db=66.0)
    found = bisect_blocks(bundle, *golden_arrays(bundle), strict)
    assert (found.verdict, found.lowered.ok) == ("mended", False)
    assert found.mended is not None
    assert found.mended.sqnr_db >= 66

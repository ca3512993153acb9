"""Measure which blocks of a network INT8 harms: what each of them, lowered alone, does to the outputs.

Each block is fed exact FP32 input, lowered exactly as it is in the lowered graph, and its output goes through the rest
of the network in FP32. So a network of B blocks takes B runs of what lies behind a block, half a forward pass each on
average; they are made block by block, each once for all the blocks before it, so that no more than one block's weights
are read at a time.

The first-order way, one backward pass for all blocks, would be cheaper, but is wrong where it matters: a block worth
returning to FP16 changes its output by much. Instead, networks with many blocks are measured on fewer images.

The score predicts flips (Pandey et al. 2023, arXiv 2302.05397, rank by the error of the logits alone): for a
classifier, the squared change of the gap between the reference's class and its runner-up, relative to the squared gap.
A gap counts as at least the median gap, since the density of small gaps is not zero: one image that was undecided
anyway would be the whole score (measured on a ResNet-20: of 1,000 images 4 had a say).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray

from calibration.collect import BATCH
from calibration.order import spread_places
from exporter.graph.counts import macs_by_node
from exporter.graph.mixed import ALONE, EXACT, with_exact_part_inputs
from exporter.graph.parts import Part, parts
from exporter.graph.probe import open_session, run_session
from exporter.lowering.picture_count import affordable_pictures
from exporter.lowering.precisions import Precision
from runtimes.block_precision import BlockDamage, Sensitivity
from runtimes.parity.compare import is_classifier
from runtimes.parity.measures import LARGEST_ERROR

FEWEST_IMAGES = 12
"""However large and deep the network."""
LOWERED_FORWARDS = 4
"""In forward passes of the FP32 graph, what one image costs before the rest of the network: the FP32 graph and the
simulation of the lowered one."""


class _Change(NamedTuple):
    """Squared changes of one output, or of the gap of its logits, (blocks, images), and the squares, (images,)."""

    squares: NDArray[np.float64]
    own: NDArray[np.float64]


def measure_sensitivity(
    precision: Precision, exact: onnx.ModelProto, lowered: onnx.ModelProto, inputs: NDArray[Any]
) -> Sensitivity:
    """Measure the damage of every block of a lowered graph, the stem and the head included.

    Args:
        precision: of `lowered`; one that rounds otherwise than a CPU.
        exact: the FP32 graph that was lowered, as it was just before.
        inputs: (images, ...) as both take them; some of them are used, spread over all (see `image_count`).
    """
    simulation = precision.simulation(lowered)
    assert simulation is not None, "a calibrated precision rounds differently from a CPU"
    cut = parts(exact)
    macs = _int8_macs(exact, lowered, cut)
    places = spread_places(len(inputs), image_count(exact, cut))
    names = [name for part in cut for name in part.makes]
    joint = open_session(with_exact_part_inputs(exact, simulation, names))
    chain = _Chain(cut)
    changes: dict[str, list[_Change]] = {value.name: [] for value in exact.graph.output}
    for start in range(0, len(places), BATCH):
        batch = inputs[places[start : start + BATCH]]
        found = run_session(joint, {joint.get_inputs()[0].name: batch})
        fp32 = {joint.get_inputs()[0].name: batch, **{name: found[EXACT + name] for name in names}}
        changed = chain.run(fp32, {name: found[ALONE + name] for name in names}, tuple(changes))
        for name, values in changed.items():
            changes[name].append(_change(fp32[name], values, is_logits=is_classifier(changes)))
    damages = np.mean([_damage(one) for one in changes.values()], axis=0)
    return Sensitivity(
        len(places),
        tuple(
            BlockDamage(part.name, float(f"{damage:.6g}"), price)
            for part, damage, price in zip(cut, damages, macs, strict=True)
        ),
    )


def image_count(model: onnx.ModelProto, cut: Sequence[Part]) -> int:
    """How many images to measure on: the most, or fewer for a network of many blocks and much work."""
    work = macs_by_node(model)
    each = [sum(work[model.graph.node[place].name] for place in part.block.nodes) for part in cut]
    cost = LOWERED_FORWARDS * sum(each) + sum(place * macs for place, macs in enumerate(each))
    return affordable_pictures(cost, FEWEST_IMAGES)


def _int8_macs(model: onnx.ModelProto, lowered: onnx.ModelProto, cut: Sequence[Part]) -> list[int]:
    """For each block the multiply-accumulates for one image of what is INT8 of it in `lowered`."""
    work = macs_by_node(model)
    quantized = {name for node in lowered.graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    products = (node for node in lowered.graph.node if node.op_type in ("Conv", "Gemm"))
    inside = {node.name for node in products if node.input[1] in quantized}
    return [
        sum(work[name] for place in part.block.nodes if (name := model.graph.node[place].name) in inside)
        for part in cut
    ]


class _Chain:
    """The FP32 parts of a network, run one after the other for many changes of what lies before them."""

    def __init__(self, cut: Sequence[Part]) -> None:
        self.cut = cut
        self.owners = {name: place for place, part in enumerate(cut) for name in part.makes}
        self.sessions = [open_session(part.model) for part in cut]

    def run(
        self, exact: Mapping[str, NDArray[Any]], alone: Mapping[str, NDArray[Any]], outputs: Sequence[str]
    ) -> dict[str, NDArray[Any]]:
        """The network's outputs with each part changed in turn: by name, (parts, images, ...).

        Args:
            exact: every tensor between parts, and the input, as FP32 makes it, (images, ...).
            alone: every tensor between parts as the changed part makes it.
        """
        made: dict[str, NDArray[Any]] = {}

        def rows(name: str, count: int) -> NDArray[Any]:
            """A tensor under the changes of the first `count` parts, one after the other; exact under those behind."""
            owner = self.owners.get(name, -1)
            known = min(count, owner + 1)
            images = len(exact[name])
            return np.concatenate(
                [*([made[name][: known * images]] if known else []), *[exact[name]] * (count - known)]
            )

        for place, (part, session) in enumerate(zip(self.cut, self.sessions, strict=True)):
            found = run_session(session, {name: rows(name, place) for name in part.reads}) if place else {}
            for name in part.makes:
                made[name] = np.concatenate([found[name], alone[name]]) if place else alone[name]
        return {name: rows(name, len(self.cut)).reshape(len(self.cut), *exact[name].shape) for name in outputs}


def _change(expected: NDArray[Any], found: NDArray[Any], *, is_logits: bool) -> _Change:
    """Of float (images, ...) and (blocks, images, ...)."""
    exact, order = expected.astype(np.float64), None
    if is_logits and exact.shape[1] > 1:
        order = np.argsort(-exact, axis=1, kind="stable")[:, :2]
        exact = np.diff(np.take_along_axis(exact, order, 1), axis=1)
    squares = np.empty(found.shape[:2])
    with np.errstate(over="ignore", invalid="ignore"):
        for row, one in zip(squares, found, strict=True):  # a stage of features is millions of values a block
            changed = one.astype(np.float64)
            if order is not None:
                changed = np.diff(np.take_along_axis(changed, order, 1), axis=1)
            row[:] = ((changed - exact) ** 2).reshape(len(exact), -1).sum(1)
    squares = np.nan_to_num(squares, nan=LARGEST_ERROR, posinf=LARGEST_ERROR)
    return _Change(squares, (exact.reshape(len(exact), -1) ** 2).sum(1))


def _damage(changes: Sequence[_Change]) -> NDArray[np.float64]:
    """The mean over images of squared change to square, which counts as at least the median square: (blocks,)."""
    own = np.concatenate([change.own for change in changes])
    least = float(np.median(own)) or 1.0
    relative = np.concatenate([change.squares for change in changes], axis=1) / np.maximum(own, least)
    return np.asarray(np.minimum(relative.mean(1), LARGEST_ERROR))

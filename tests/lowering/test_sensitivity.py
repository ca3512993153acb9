"""What INT8 costs in each block: against a run per block, and on a network with a block that INT8 cannot hold."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx
import pytest
import torch
from bad_blocks import SIZE, write_checkpoint
from numpy.typing import NDArray

from calibration.data import built_in, inputs_from_source
from exporter.graph.build import GraphForm, clean_graph
from exporter.graph.mixed import with_fp32_nodes
from exporter.graph.parts import parts
from exporter.graph.probe import inner_tensors
from exporter.graph.trace import program_from_module
from exporter.lowering.picture_count import MOST_PICTURES
from exporter.lowering.precisions import int8
from exporter.lowering.sensitivity import FEWEST_IMAGES, image_count, measure_sensitivity
from exporter.models.loading import load_model
from exporter.models.request import ModelRequest
from runtimes.block_precision import Sensitivity
from runtimes.progress import Steps
from runtimes.specs import BatchRange

IMAGES = 32


class Lowered(NamedTuple):
    """A network, lowered with plain ranges."""

    exact: onnx.ModelProto
    model: onnx.ModelProto
    inputs: NDArray[np.float32]

    def sensitivity(self, images: int = IMAGES) -> Sensitivity:
        return measure_sensitivity(int8, self.exact, self.model, self.inputs[:images])


def lowered(request: ModelRequest, outputs: tuple[str, ...] = ("logits",)) -> Lowered:
    loaded = load_model(request)
    inputs = inputs_from_source(built_in("train"), loaded.preprocess, IMAGES)
    program = program_from_module(loaded.module, loaded.preprocess.shape)
    exact = clean_graph(program, GraphForm(20, BatchRange(1, 2, 8), outputs), loaded.preprocess, inputs, Steps())
    ranges = {
        name: float(np.abs(values).max())
        for name, values in inner_tensors(exact, int8.observed_tensors(exact), inputs).items()
    }
    return Lowered(exact, int8.lower(exact, ranges), inputs)


@pytest.fixture(name="network", scope="module")
def network_fixture(tmp_path_factory: pytest.TempPathFactory) -> Lowered:
    """The shipped ResNet-20 with layer2.1 spoilt."""
    path = write_checkpoint(tmp_path_factory.mktemp("weights") / "bad.pth", ["layer2.1"])
    mean, std = (float(SIZE[place]) for place in (1, 3))
    return lowered(ModelRequest("resnet20", weights=str(path), mean=(mean,), std=(std,)))


def test_the_block_that_int8_cannot_hold_has_nearly_all_of_the_damage(network: Lowered) -> None:
    found = network.sensitivity()
    assert found.worst(1) == ("layer2.1",)
    assert found.shares["layer2.1"] > 0.9
    assert sum(found.shares.values()) == pytest.approx(1)
    assert found.images == IMAGES


def test_every_block_has_the_damage_that_a_run_with_it_alone_lowered_shows(network: Lowered) -> None:
    """The reference: one graph for each block, the rest of which computes in FP32, as `--bisect` makes them."""
    simulation, graph = int8.simulation(network.model), network.exact.graph
    (exact,) = inner_tensors(network.exact, ["logits"], network.inputs).values()
    order = np.argsort(-exact, 1)[:, :2]
    gaps = np.diff(np.take_along_axis(exact.astype(np.float64), order, 1))[:, 0]
    least = np.median(gaps**2)
    for part, found in zip(parts(network.exact), network.sensitivity().blocks, strict=True):
        inside = {graph.node[place].name for place in part.block.nodes}
        others = {node.name for node in graph.node} - inside
        (logits,) = inner_tensors(
            with_fp32_nodes(network.exact, simulation, others), ["logits"], network.inputs
        ).values()
        changed = np.diff(np.take_along_axis(logits.astype(np.float64), order, 1))[:, 0]
        expected = ((changed - gaps) ** 2 / np.maximum(gaps**2, least)).mean()
        assert found.name == part.name
        # There what a block makes is rounded to FP16 as well.
        assert found.damage == pytest.approx(expected, rel=0.05, abs=2e-7), part.name


def test_the_price_of_a_block_is_its_int8_work(network: Lowered) -> None:
    prices = {block.name: block.macs for block in network.sensitivity().blocks}
    assert prices["layer1.0"] == 2 * 28 * 28 * 16 * 16 * 9
    assert prices["head"] == 0  # its one product stays in FP16
    assert network.sensitivity().shares["head"] < 1e-3


def test_the_same_images_give_the_same_figures_to_the_last_bit(network: Lowered) -> None:
    assert network.sensitivity() == network.sensitivity()


def test_one_undecided_image_is_not_the_whole_score(network: Lowered) -> None:
    """Without a least gap, an image between two classes would outweigh all others together."""
    plain = network.sensitivity(16)
    first, second = network.inputs[0], network.inputs[1]
    low, high = 0.0, 1.0
    for _ in range(40):  # a blend of two pictures at which the network wavers
        middle = (low + high) / 2
        (logits,) = inner_tensors(network.exact, ["logits"], (first + middle * (second - first))[None]).values()
        (start,) = inner_tensors(network.exact, ["logits"], first[None]).values()
        low, high = (middle, high) if logits.argmax() == start.argmax() else (low, middle)
    wavering = (first + low * (second - first)).astype(np.float32)[None]
    inputs = np.concatenate([network.inputs[:15], wavering])
    found = measure_sensitivity(int8, network.exact, network.model, inputs)
    assert found.blocks[5].damage < 2 * plain.blocks[5].damage


def test_features_are_compared_by_their_squares() -> None:
    """A network whose output is no `logits`: every block has a damage, relative to the output's own square."""
    network = lowered(ModelRequest("resnet20"), ("features",))
    simulation = int8.simulation(network.model)
    (exact,) = inner_tensors(network.exact, ["features"], network.inputs).values()
    every = {node.name for node in network.exact.graph.node}
    part = parts(network.exact)[1]
    inside = {network.exact.graph.node[place].name for place in part.block.nodes}
    changed = inner_tensors(with_fp32_nodes(network.exact, simulation, every - inside), ["features"], network.inputs)
    own = (exact.astype(np.float64) ** 2).sum(1)
    squares = ((changed["features"].astype(np.float64) - exact) ** 2).sum(1)
    expected = (squares / np.maximum(own, np.median(own))).mean()
    assert network.sensitivity().blocks[1].damage == pytest.approx(expected, rel=0.05)


def model_of(module: torch.nn.Module, size: int) -> onnx.ModelProto:
    exported = torch.onnx.export(
        torch.export.export(module.eval(), (torch.zeros(1, 3, size, size),)), dynamo=True, verbose=False
    )
    assert exported is not None
    return onnx.shape_inference.infer_shapes(exported.model_proto)


def test_networks_of_many_blocks_are_measured_on_fewer_images() -> None:
    """A chain of blocks of equal work, cheap and dear."""

    def chain(blocks: int, size: int) -> onnx.ModelProto:
        class Net(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.stem = torch.nn.Conv2d(3, 8, 3, padding=1)
                self.inner = torch.nn.ModuleList(torch.nn.Conv2d(8, 8, 3, padding=1) for _ in range(blocks))
                self.fc = torch.nn.Linear(8, 4)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                x = self.stem(x).relu()
                for one in self.inner:
                    x = (x + one(x)).relu()
                return torch.as_tensor(self.fc(x.mean((2, 3))))

        return model_of(Net(), size)

    small, deep = chain(4, 16), chain(90, 512)
    assert image_count(small, parts(small)) == MOST_PICTURES
    assert image_count(deep, parts(deep)) == FEWEST_IMAGES


def test_blocks_that_share_a_name_are_told_apart() -> None:
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = torch.nn.Conv2d(3, 8, 3, padding=1)
            self.a, self.b = torch.nn.Conv2d(8, 8, 1), torch.nn.Conv2d(8, 8, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem(x).relu()
            x = x + self.a(x)
            return torch.as_tensor((x + self.b(x)).mean((2, 3)))

    model = model_of(Net(), 8)
    for node in model.graph.node:
        node.name = node.name.replace("node_", "layer.") if node.op_type == "Conv" else node.name
    names = [part.name for part in parts(model)]
    assert len(set(names)) == len(names)

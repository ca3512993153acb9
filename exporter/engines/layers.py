"""Read in which precision an engine's layers run, and on which processor, and check both against what was asked for."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from runtimes.errors import BuildError
from runtimes.nvidia.engine_file import LayerFacts

DATA_TYPES = {
    "float": "fp32",
    "fp32": "fp32",
    "half": "fp16",
    "fp16": "fp16",
    "bfloat16": "bf16",
    "bf16": "bf16",
    "int8": "int8",
    "fp8": "fp8",
}
NAMED = 5
DLA = "DLA"
"""The kind of a layer that holds a part of the graph which runs on DLA."""
HIDDEN = "hidden by DLA"
"""In place of a convolution's type on DLA, where its stretch reads another than the bundle's: what the convolutions in
it read is not told."""
FOREIGN = re.compile(r"\{ForeignNode\[(?P<first>.+?)(?:\.\.\.(?P<last>.+))?\]\}")
"""Name of such a layer: the first and the last of the graph's layers in it, each of which may be fused from several."""
CONVOLVES = re.compile(r"conv|correlation|gemm|runtime_fusion|dla", re.IGNORECASE)
LOG_LAYER = re.compile(
    r"Name: (?P<name>.*?), LayerType: (?P<kind>\w+), Inputs: \[(?P<inputs>.*?)\], Constants: \[.*?\], Outputs: \[.*?\],"
    r".*?Metadata: (?P<metadata>.*)"
)


@dataclass(frozen=True)
class EngineLayer:
    """One layer of an engine.

    Attributes:
        kind: the library's name for its sort.
        reads: the data types of its inputs, without weights.
        nodes: the graph's nodes in it.
    """

    kind: str
    reads: tuple[str, ...]
    nodes: frozenset[str]
    name: str = field(default="", compare=False)

    @property
    def on_dla(self) -> bool:
        return self.kind.upper() == DLA

    @property
    def moves_data(self) -> bool:
        """Does it only change a tensor's format, and compute nothing?"""
        return self.kind.lower().startswith("reformat")


def layers_from_log(text: str) -> list[EngineLayer]:
    """Layers in a builder's log at DETAILED verbosity, which TensorRT-RTX writes without a GPU."""
    return [
        EngineLayer(
            match["kind"],
            tuple(_data_type(word) for word in re.findall(r"Datatype: (\w+)", match["inputs"])),
            _nodes(match["name"], match["metadata"]),
        )
        for line in text.splitlines()
        if (match := LOG_LAYER.match(line))
    ]


def layers_from_inspector(information: str) -> list[EngineLayer]:
    """Layers in the JSON of `EngineInspector.get_engine_information`, of an engine built at DETAILED verbosity.

    TensorRT 10 has one field "Format/Datatype", 11 has two; their values are "Int8" or
    "Thirty-two wide channel vectorized row major Int8 format".

    Raises:
        BuildError: there are no layers in it.
    """
    try:
        records = json.loads(information)["Layers"]
    except (ValueError, KeyError, TypeError) as error:
        raise BuildError(f"the engine inspector's answer has no layers ({error}); its precision is unknown") from error
    if any(isinstance(record, str) for record in records):
        raise BuildError("the engine inspector tells no more than names; its precision is unknown")
    return [
        EngineLayer(
            str(record.get("LayerType", "")),
            tuple(_data_type(_type_field(tensor)) for tensor in record.get("Inputs", ())),
            _nodes(str(record.get("Name", "")), str(record.get("Metadata", ""))),
            str(record.get("Name", "")),
        )
        for record in records
    ]


def spread_over_dla(layers: Sequence[EngineLayer], order: Sequence[str]) -> list[EngineLayer]:
    """Give each layer on DLA all the graph's nodes in it; its name has the first and the last alone.

    Args:
        order: the names of the graph's layers, in the graph's order. A node between the first and the last is on DLA
            unless a layer on the GPU names it.
    """
    places = {name: place for place, name in enumerate(order)}
    on_gpu = {node for layer in layers if not layer.on_dla and not layer.moves_data for node in layer.nodes}

    def spread(layer: EngineLayer) -> EngineLayer:
        found = FOREIGN.search(layer.name)
        if not layer.on_dla or found is None:
            return layer
        first, last = (
            [places[part] for part in (end or "").split(" + ") if part in places]
            for end in (found["first"], found["last"])
        )
        known = first + last
        between = order[min(known) : max(known) + 1] if first and (last or found["last"] is None) else ()
        return replace(layer, nodes=layer.nodes | (frozenset(between) - on_gpu))

    return [spread(layer) for layer in layers]


def layers_on_gpu(layers: Iterable[EngineLayer], order: Sequence[str]) -> tuple[str, ...]:
    """The graph's layers that run on the GPU, in the graph's order."""
    named = {node for layer in layers if not layer.on_dla and not layer.moves_data for node in layer.nodes}
    return tuple(name for name in order if name in named)


def layers_on_dla(layers: Iterable[EngineLayer], order: Sequence[str]) -> tuple[str, ...]:
    """The graph's layers that run on DLA, in the graph's order."""
    named = {node for layer in layers if layer.on_dla for node in layer.nodes}
    return tuple(name for name in order if name in named)


def check_dla(facts: LayerFacts, convolutions: Sequence[str], core: int) -> None:
    """Check that every convolution runs on DLA.

    Raises:
        BuildError: one does not, as far as the library says; names some.
    """
    elsewhere = [name for name in convolutions if name not in facts.on_dla]
    if elsewhere:
        raise BuildError(
            f"--dla {core} asks for DLA, but {len(elsewhere)} of {len(convolutions)} convolutions do not run there: "
            f"{_first_names(elsewhere)}; accept that with --allow-fallback-layers, or build without --dla"
        )


def check_dla_stretch(facts: LayerFacts, convolutions: Sequence[str], order: Sequence[str], core: int) -> None:
    """Check that a graph that was written for DLA runs there from its first convolution to its last, the classifier.

    Raises:
        BuildError: a layer between them runs on the GPU; names some.
    """
    places = [order.index(name) for name in convolutions if name in order]
    stretch = order[min(places, default=0) : max(places, default=-1) + 1]
    elsewhere = [name for name in stretch if name in facts.on_gpu]
    if elsewhere:
        raise BuildError(
            f"the bundle was exported with --dla-friendly, so that --dla {core} runs all from the first convolution to "
            f"the classifier there, but {len(elsewhere)} of {len(stretch)} layers run on the GPU: "
            f"{_first_names(elsewhere)}; accept that with --allow-fallback-layers, or build without --dla"
        )


def layer_facts(
    layers: Iterable[EngineLayer],
    convolutions: Sequence[str],
    precision: str,
    left_in_float: frozenset[str] = frozenset(),
) -> LayerFacts:
    """Count layers by kind and data type, and find the convolutions that do not run in `precision`.

    A convolution runs in the type of its layer's first input, the activation; where an addition is fused, the second is
    the shortcut.

    Args:
        left_in_float: convolutions that need not run in `precision`.
    """
    kernels: defaultdict[str, Counter[str]] = defaultdict(Counter)
    types: defaultdict[str, set[str]] = defaultdict(set)
    for layer in layers:
        if not layer.reads:
            continue
        kernels[layer.kind][layer.reads[0]] += 1
        if CONVOLVES.search(layer.kind) and not layer.moves_data:
            read = HIDDEN if layer.on_dla and layer.reads[0] != precision else layer.reads[0]
            for node in layer.nodes:
                types[node].add(read)
    counted = Counter(" and ".join(sorted(types[name])) or "unknown" for name in convolutions)
    fallback = tuple(name for name in convolutions if name not in left_in_float and types[name] != {precision})
    return LayerFacts(
        {kind: dict(sorted(kernels[kind].items())) for kind in sorted(kernels)}, dict(sorted(counted.items())), fallback
    )


def check_precision(facts: LayerFacts, precision: str) -> None:
    """Check that every convolution runs in the bundle's precision.

    Raises:
        BuildError: one does not, or that is not told; names some.
    """
    if facts.fallback and facts.convolutions.get(HIDDEN):
        raise BuildError(
            f"the bundle promises {precision}, and the engine inspector does not tell in which type DLA runs "
            f"{facts.convolutions[HIDDEN]} of its convolutions; accept that with --allow-fallback-layers, or export "
            "with --fp16"
        )
    if facts.fallback:
        types = ", ".join(f"{count} {name}" for name, count in facts.convolutions.items())
        raise BuildError(
            f"the bundle promises {precision}, but {len(facts.fallback)} of its convolutions run otherwise ({types}): "
            f"{_first_names(facts.fallback)}; accept that with --allow-fallback-layers, or export in another precision"
        )


def _first_names(names: Sequence[str]) -> str:
    return ", ".join([*names[:NAMED], *(["..."] if len(names) > NAMED else [])])


def _type_field(tensor: dict[str, object]) -> str:
    return str(tensor.get("Datatype") or tensor.get("DataType") or tensor.get("Format/Datatype") or "")


def _data_type(words: str) -> str:
    known = [DATA_TYPES[word] for word in re.findall(r"[a-z0-9]+", words.lower()) if word in DATA_TYPES]
    return known[0] if known else words.lower() or "unknown"


def _nodes(name: str, metadata: str) -> frozenset[str]:
    """The ONNX nodes that a layer was made from: those in its metadata, and those in its name if it is fused."""
    return frozenset({*re.findall(r"\[ONNX Layer: ([^\]]+)\]", metadata), *name.split(" + ")})

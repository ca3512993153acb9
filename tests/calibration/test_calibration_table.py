"""`calibration.json`: read back as written, merged to the last bit, refused for all but what it was measured on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from calibration.collect import BATCH, collect
from calibration.data import built_in
from calibration.observers import observers
from calibration.sample import Sample
from calibration.table import CalibrationTable, Provenance, merge_tables, table_from_file, table_from_histograms
from exporter.graph.simplify import simplify
from exporter.lowering.qdq.targets.tensorrt import place_pairs
from runtimes.backends.onnxruntime import OnnxRuntime
from runtimes.errors import BadInput, CalibrationError
from runtimes.preprocess import Preprocess

PREPROCESS = Preprocess(28, (28, 28), "bilinear", True, (0.286,), (0.353,))
PLACES = np.arange(100)


@pytest.fixture(scope="module")
def graph(tiny_model: Path) -> onnx.ModelProto:
    model = onnx.load(tiny_model / "model.onnx")
    return simplify(model, np.zeros((1, 1, 28, 28), np.float32))


@pytest.fixture(scope="module")
def provenance(graph: onnx.ModelProto) -> Provenance:
    return Provenance(
        hashlib.sha256(graph.SerializeToString(deterministic=True)).hexdigest(),
        PREPROCESS,
        {"numpy": "2.0.0", "onnxruntime": "1.20.0"},
    )


@pytest.fixture(scope="module")
def measured(graph: onnx.ModelProto, provenance: Provenance) -> Callable[[Any], CalibrationTable]:
    """The table of the built-in training images at some places."""

    def measure(places: Any) -> CalibrationTable:
        sample = Sample(built_in("train").subset(np.asarray(places)), PREPROCESS)
        histograms = collect(graph, place_pairs(graph).observed, sample.batches(BATCH))
        return table_from_histograms(
            histograms, provenance, images=sample.seen.images, fingerprint=sample.seen.fingerprint
        )

    return measure


@pytest.fixture(scope="module")
def table(measured: Callable[[Any], CalibrationTable]) -> CalibrationTable:
    return measured(PLACES)


def test_ranges_are_those_of_the_tensors_themselves(table: CalibrationTable, graph: onnx.ModelProto) -> None:
    exposed = onnx.ModelProto()
    exposed.CopyFrom(graph)
    inner = [name for name in table.tensors if name != "input"]
    exposed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in inner)
    inputs = np.concatenate(list(Sample(built_in("train").subset(PLACES), PREPROCESS).batches(100)))
    with OnnxRuntime.from_bytes(exposed.SerializeToString()) as runtime:
        values = {"input": inputs, **runtime.run({"input": inputs})}
    assert set(table.tensors) == set(place_pairs(graph).observed)
    for name, tensor in table.tensors.items():
        assert tensor.largest == pytest.approx(float(np.abs(values[name]).max()), rel=1e-5)
        assert tensor.histogram.counts.sum() == values[name].size
        assert set(tensor.thresholds) == set(observers())
        assert tensor.thresholds["minmax"] == pytest.approx(tensor.largest, rel=1e-8)
    assert table.images == 100


@pytest.mark.parametrize("cut", [50, 37, 99], ids=lambda cut: f"cut at {cut}")
def test_merged_shards_are_one_runs_table_to_the_last_bit(
    measured: Callable[[Any], CalibrationTable], table: CalibrationTable, cut: int
) -> None:
    shards = [measured(PLACES[:cut]), measured(PLACES[cut:])]
    assert merge_tables(shards).json() == merge_tables(shards[::-1]).json() == table.json()
    assert shards[0].json() != table.json()


def test_the_order_of_the_images_does_not_matter(
    measured: Callable[[Any], CalibrationTable], table: CalibrationTable
) -> None:
    assert measured(np.random.default_rng(0).permutation(PLACES)).json() == table.json()


def test_a_table_read_back_is_the_table_and_merges_to_the_same_bytes(
    measured: Callable[[Any], CalibrationTable], table: CalibrationTable, tmp_path: Path
) -> None:
    shards = []
    for place, part in enumerate((PLACES[:20], PLACES[20:90], PLACES[90:])):
        path = tmp_path / f"{place}.json"
        path.write_bytes(measured(part).json())
        shards.append(table_from_file(path))
    assert merge_tables(shards) == table
    assert merge_tables(shards).json() == table.json()
    assert merge_tables([table]).json() == table.json()
    facts = json.loads(table.json())
    assert list(facts)[:7] == [
        "schema_version",
        "model_sha256",
        "images",
        "fingerprint",
        "preprocess",
        "versions",
        "tensors",
    ]
    assert table.json().endswith(b"}\n")
    assert max(len(line) for line in table.json().splitlines()) < 20_000


@pytest.mark.parametrize("name", observers())
def test_thresholds_are_given_by_calibrator_and_read_off_the_counts_where_a_table_has_none(
    table: CalibrationTable, name: str
) -> None:
    thresholds = table.thresholds(name)
    assert thresholds == {tensor: facts.thresholds[name] for tensor, facts in table.tensors.items()}
    older = {tensor: replace(facts, thresholds={}) for tensor, facts in table.tensors.items()}
    assert replace(table, tensors=older).thresholds(name) == pytest.approx(thresholds, rel=1e-8)


DIFFERENT: dict[str, tuple[dict[str, Any], str]] = {
    "model": ({"model_sha256": "f" * 64}, r"model_sha256 is [0-9a-f]{64}, expected f{64}"),
    "preprocess": (
        {"preprocess": replace(PREPROCESS, crop=(24, 24))},
        r"preprocess is .*crop=\(28, 28\).*, expected .*crop=\(24, 24\).*",
    ),
    "version": (
        {"versions": {"numpy": "2.0.0", "onnxruntime": "1.21.0"}},
        r"version of onnxruntime is 1\.20\.0, expected 1\.21\.0",
    ),
    "package": ({"versions": {"numpy": "2.0.0", "torch": "2.9"}}, r"version of torch is None, expected 2\.9"),
}


@pytest.mark.parametrize("what", DIFFERENT)
def test_a_table_of_something_else_is_refused_with_what_differs(
    table: CalibrationTable, provenance: Provenance, what: str
) -> None:
    provenance.check(table, "calibration.json")
    change, says = DIFFERENT[what]
    with pytest.raises(
        CalibrationError, match=rf"calibration\.json was not measured on this: {says}; leave --calibration out"
    ):
        replace(provenance, **change).check(table, "calibration.json")
    if what != "package":
        with pytest.raises(CalibrationError, match="table 2 was not measured on this"):
            merge_tables([table, replace(table, **change)])


def test_tables_of_other_tensors_are_not_merged(table: CalibrationTable) -> None:
    fewer = replace(table, tensors=dict(list(table.tensors.items())[:-1]))
    with pytest.raises(CalibrationError, match="table 2 has other tensors than the first"):
        merge_tables([table, fewer])


def test_a_tensor_that_never_was_seen_is_refused(graph: onnx.ModelProto, provenance: Provenance) -> None:
    histograms = collect(graph, ["input"], [])
    with pytest.raises(CalibrationError, match="no value of 'input' was seen; give calibration images"):
        table_from_histograms(histograms, provenance, images=0, fingerprint="0" * 64)


def edited(table: CalibrationTable, change: Callable[[dict[str, Any]], object]) -> bytes:
    facts = json.loads(table.json())
    change(facts)
    return json.dumps(facts).encode()


def first(facts: dict[str, Any]) -> dict[str, Any]:
    tensor: dict[str, Any] = next(iter(facts["tensors"].values()))
    return tensor


DAMAGE: dict[str, Callable[[CalibrationTable], bytes]] = {
    "nothing": lambda table: b"",
    "binary": lambda table: b"\x89PNG\r\n\x1a\n\xff",
    "cut short": lambda table: table.json()[:-100],
    "a list": lambda table: b"[]",
    "a word for a number": lambda table: edited(table, lambda facts: facts.update(images="many")),
    "no tensors": lambda table: edited(table, lambda facts: facts.pop("tensors")),
    "counts cut short": lambda table: edited(
        table, lambda facts: first(facts).update(counts=first(facts)["counts"][:-8])
    ),
    "counts of another alphabet": lambda table: edited(table, lambda facts: first(facts).update(counts="?!")),
    "NaN": lambda table: edited(table, lambda facts: first(facts).update(largest=float("nan"))),
    "a negative largest": lambda table: edited(table, lambda facts: first(facts).update(largest=-1.0)),
    "a range that its largest is beyond": lambda table: edited(table, lambda facts: first(facts).update(largest=1e30)),
    "a threshold of minus one": lambda table: edited(table, lambda facts: first(facts)["thresholds"].update(mse=-1.0)),
    "no fingerprint": lambda table: edited(table, lambda facts: facts.update(fingerprint="of a finger")),
    "a range beyond every float": lambda table: edited(table, lambda facts: first(facts).update(exponent=10**6)),
    "nested without end": lambda table: (
        table.json().rstrip()[:-1] + b',"more":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    ),
    "a crop of nothing": lambda table: edited(table, lambda facts: facts["preprocess"].update(crop=[0, 0])),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_table_is_refused_by_name(table: CalibrationTable, damage: str, tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    path.write_bytes(DAMAGE[damage](table))
    with pytest.raises(BadInput, match=r"calibration\.json is no calibration table: ."):
        table_from_file(path)


def test_a_table_that_is_missing_or_of_another_schema_is_refused(table: CalibrationTable, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"cannot read the calibration table .*gone\.json: No such file"):
        table_from_file(tmp_path / "gone.json")
    path = tmp_path / "new.json"
    path.write_bytes(replace(table, schema_version=99).json())
    with pytest.raises(BadInput, match="expected schema_version 2, got 99; calibrate again with this version"):
        table_from_file(path)


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_activations_that_are_not_finite_are_refused_with_the_first_tensor_that_holds_them(value: float) -> None:
    """Two convolutions; the second one's bias is what it should not be."""
    constants = [
        numpy_helper.from_array(np.ones((1, 1, 1, 1), np.float32), "weight"),
        numpy_helper.from_array(np.array([value], np.float32), "bias"),
    ]
    nodes = [
        helper.make_node("Conv", ["input", "weight"], ["a"], name="a"),
        helper.make_node("Conv", ["a", "weight", "bias"], ["b"], name="b"),
        helper.make_node("Conv", ["b", "weight"], ["logits"], name="c"),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 1, 4, 4]) for name in ("input", "logits")]
    model = helper.make_model(
        helper.make_graph(nodes, "g", ends[:1], ends[1:], constants),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=9,
    )
    with pytest.raises(CalibrationError, match="'b' holds NaN or infinite values on the calibration images"):
        collect(model, ["input", "a", "b"], [np.ones((4, 1, 4, 4), np.float32)])
    assert collect(model, ["input", "a"], [np.ones((2, 1, 4, 4), np.float32)])["a"].counts.sum() == 2 * 16

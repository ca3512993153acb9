"""Results as files: read back as they were written, refused where they are damaged, and put side by side."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from made_results import FOLDER, MACHINE, STEADY, entry, facts, result, slowed

from runtimes.benchmark.compare import compare_results
from runtimes.benchmark.result_file import LARGEST_FILE, json_from_result, result_from_file
from runtimes.benchmark.results import today
from runtimes.errors import BadInput
from runtimes.manifest import ModelFacts, WeightsFacts


def test_a_result_is_read_as_it_was_written(tmp_path: Path) -> None:
    written = result(entry("onnxruntime"), entry("openvino", slowed(STEADY, 2)))
    path = tmp_path / "result.json"
    path.write_bytes(json_from_result(written))
    assert result_from_file(path) == written


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "expected a JSON object, got"),
        (b"[]", "expected a JSON object, got"),
        (b"\xff\xfe", "expected a JSON object, got"),
        (b"[" * 100_000, "expected a JSON object, got"),
        (b"{}", "expected schema_version 1, got None"),
        (b'{"schema_version": 2}', "expected schema_version 1, got 2"),
        (b'{"schema_version": 1}', "missing required field"),
    ],
)
def test_a_damaged_result_is_refused(data: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_bytes(data)
    with pytest.raises(BadInput, match=said):
        result_from_file(path)


def test_a_field_of_the_wrong_type_is_named(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_bytes(json_from_result(result(entry("onnxruntime"))).replace(b'"calls": 100', b'"calls": "many"', 1))
    with pytest.raises(BadInput, match=r"Expected `int`, got `str` - at `\$.entries\[0\]"):
        result_from_file(path)


def test_no_file_or_a_far_too_large_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot read .*none.json: No such file"):
        result_from_file(tmp_path / "none.json")
    with (tmp_path / "large.json").open("wb") as file:
        file.truncate(LARGEST_FILE + 1)
    with pytest.raises(BadInput, match="it is larger than"):
        result_from_file(tmp_path / "large.json")


def test_the_share_of_the_roof_is_of_the_type_that_the_convolutions_are_in() -> None:
    found = result(entry("onnxruntime"), entry("pytorch"))
    mine, reference = found.entries
    assert found.share_of_roof(mine) == pytest.approx(4 * 100 * 1e6 / 1e9), "INT8's"
    assert found.share_of_roof(reference) == pytest.approx(4 * 100 * 1e6 / 5e8), "it runs the FP32 program"
    half = result(entry("onnxruntime"), bundles=[facts(precision="fp16")])
    assert half.share_of_roof(half.entries[0]) == pytest.approx(0.8), "processors compute FP16 in FP32"
    assert result(entry("onnxruntime"), bundles=[facts(macs=None)]).share_of_roof(mine) is None
    assert result(entry("onnxruntime"), roofs=()).share_of_roof(mine) is None


def test_a_99th_percentile_takes_a_hundred_calls() -> None:
    latency = entry("onnxruntime").latency
    assert latency is not None
    assert latency.p99_ms == pytest.approx(10.99)
    assert replace(latency, calls=99).p99_ms is None


def test_results_of_one_model_are_put_side_by_side_whatever_the_precision() -> None:
    first = result(entry("onnxruntime"), entry("openvino"))
    second = result(entry("onnxruntime", slowed(STEADY, 0.5)), bundles=[facts(precision="fp32", name="tiny-fp32")])
    found = compare_results(first, second)
    assert [(row.name, row.line, row.batch) for row in found.rows] == [
        ("onnxruntime cpu", line, batch) for line in ("device", "copies") for batch in (1, 8)
    ]
    assert all(row.ratio.median == pytest.approx(2.0) for row in found.rows)
    assert {row.verdict for row in found.rows} == {"faster"}
    assert found.alone == ("openvino cpu: only the first result has it",)
    assert found.machines == ""
    assert {row.verdict for row in compare_results(first, first).rows} == {"no difference to be told"}
    short = result(entry("onnxruntime", STEADY[:3]))
    assert {row.verdict for row in compare_results(short, first).rows} == {"too few rounds to tell"}


def test_other_machines_are_said() -> None:
    first = result(entry("onnxruntime"))
    versions = {"onnxruntime": "1.33.0", "torch": "2.14.1"}
    second = replace(first, machine=replace(MACHINE, flags=("avx2", "avx512_vnni"), versions=versions))
    assert compare_results(first, second).machines == (
        "flags avx2 and avx2 avx512_vnni, onnxruntime 1.32.0 and 1.33.0, torch none and 2.14.1"
    )
    idle = replace(first, machine=replace(MACHINE, load=3.0, governors=()))
    assert compare_results(first, idle).machines == ""


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"model": ModelFacts("large", "tests", "cifar", 10, WeightsFacts("random", "0"))},
            "model.name tiny and large",
        ),
        ({"model": ModelFacts("tiny", "tests", "cifar", 9, WeightsFacts("random", "0"))}, "model.classes 10 and 9"),
        ({"inputs": ()}, "inputs batchx1x28x28 and ;"),
        ({"macs": 5}, "macs 1000000 and 5"),
    ],
    ids=["name", "classes", "inputs", "macs"],
)
def test_results_of_different_models_are_refused_and_the_field_named(changes: dict[str, object], said: str) -> None:
    with pytest.raises(BadInput, match=f"expected two results of the same model, got {said}"):
        compare_results(result(entry("onnxruntime")), result(entry("onnxruntime"), bundles=[facts(FOLDER, **changes)]))


def test_several_bundles_are_paired_by_their_names() -> None:
    pair = [facts(), facts("other", name="tiny-fp32")]
    both = result(entry("onnxruntime"), entry("onnxruntime", folder="other"), bundles=pair)
    found = compare_results(both, both)
    assert {row.name for row in found.rows} == {"tiny-int8 onnxruntime cpu", "tiny-fp32 onnxruntime cpu"}
    others = result(bundles=[facts("a", name="a"), facts("b", name="b")])
    with pytest.raises(BadInput, match="expected two results of the same bundles, got tiny-int8, tiny-fp32 and a, b"):
        compare_results(both, others)


def test_the_date_can_be_fixed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    assert today() == "1970-01-01"


@pytest.mark.parametrize(
    ("written", "instead", "said"),
    [
        (r'"images_per_s": \[[^]]*\]', '"images_per_s": []', "expected rates above 0"),
        (r'"images_per_s": \[\s*[0-9.]+', '"images_per_s": [0.0', "expected rates above 0"),
        (r'"percentiles_ms": \[[^]]*\]', '"percentiles_ms": [1.0]', "expected 101 percentiles, got 1"),
    ],
)
def test_figures_that_nothing_can_be_computed_from_are_refused(
    written: str, instead: str, said: str, tmp_path: Path
) -> None:
    path, text = tmp_path / "result.json", json_from_result(result(entry("onnxruntime"))).decode()
    path.write_text(re.sub(written, instead, text, count=1))
    with pytest.raises(BadInput, match=said):
        result_from_file(path)


def test_a_share_is_of_the_roof_of_what_really_computes() -> None:
    found = result(entry("pytorch", variant="compile"), entry("onnxruntime"))
    compiled, simulated = found.entries
    simulated = replace(simulated, details={"int8": "simulated as a GPU computes it"})
    for one in (compiled, simulated):
        roof = found.roof_of(one)
        assert roof is not None
        assert roof.dtype == "fp32"


def test_bundles_that_one_result_alone_has_are_said() -> None:
    two = [facts("a", name="a"), facts("b", name="b")]
    first = result(entry("onnxruntime", folder="a"), entry("onnxruntime", folder="b"), bundles=two)
    second = result(entry("onnxruntime", folder="a"), bundles=two[:1])
    assert "b: only the first result has it" in compare_results(first, second).alone

"""A manifest is read back as it was written, and what is wrong in it is named by its place."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from manifest_edits import rewrite_manifest
from small_bundles import bundle_fixture  # noqa: F401  # pytest finds the fixture by its name

from runtimes.bundle import MANIFEST, Bundle
from runtimes.errors import BundleError
from runtimes.manifest import Asked, Manifest, json_from_manifest, manifest_from_json
from runtimes.parity.budget import Budget
from runtimes.source_file import SourceFile

FREE_KEYS = {
    "$.versions",
    "$.graph.operators",
    "$.graph.types",
    "$.graph.types[...]",
    "$.parity.backends",
    "$.parity.backends[...].outputs",
    "$.files",
    "$.asked.budget",
}
"""Objects of the manifest whose keys are data, not field names."""
OPTIONAL = {
    "$.preprocess.channels_order",
    "$.accuracy",
    "$.calibration",
    "$.calibration.repairs",
    "$.sensitivity",
    "$.mixed",
    "$.kernels",
    "$.source_file",
    "$.asked",
    *(f"$.asked.{name}" for name in Asked.__dataclass_fields__),
    "$.files",
    "$.parity.budget",
    "$.parity.backends[...].outputs",
    "$.accuracy.lost",
    "$.accuracy.gained",
    *(
        f"$.parity.backends[...].{name}"
        for name in ("violations", "undecided", "kept", "max_batch_difference", "images")
    ),
    *(f"$.parity.budget.{name}" for name in Budget.__dataclass_fields__ if name != "own_error"),
}
TEXTS_AND_OUTPUTS = {f"$.parity.backends[...].{name}" for name in ("violations", "undecided", "kept", "outputs")}
NOT_NULL = {"$.preprocess.channels_order", "$.files", "$.parity.budget", "$.asked", "$.asked.seed", "$.asked.budget"}
NULLABLE = (OPTIONAL - NOT_NULL - TEXTS_AND_OUTPUTS) | {
    "$.preprocess.resize",
    "$.graph.macs",  # unknown for free sizes
    # What features do not have, and a single logit.
    *(f"$.parity.backends[...].{name}" for name in ("top1_agreement", "top5_overlap", "flips", "worst_cosine")),
}


def test_equal_manifests_give_equal_bytes_and_survive_the_round_trip(manifest: Manifest) -> None:
    data = json_from_manifest(manifest)
    assert data == json_from_manifest(dataclasses.replace(manifest))
    assert data.endswith(b"}\n")
    assert manifest_from_json(data, where="here") == manifest


def test_a_manifest_without_what_is_optional_is_read(manifest: Manifest) -> None:
    document = json.loads(json_from_manifest(manifest))
    del document["accuracy"], document["calibration"], document["files"]
    read = manifest_from_json(json.dumps(document).encode(), where="here")
    assert (read.accuracy, read.calibration, read.files) == (None, None, {})


def test_random_weights_are_held_to_the_limits_on_classes_that_were_asked_for_and_no_others(manifest: Manifest) -> None:
    budget = Budget(own_error=0.01, min_agreement=0.9, max_accuracy_drop=0.01, min_sqnr_db=10)
    trained, random = (
        replace(
            manifest,
            parity=replace(manifest.parity, budget=budget),
            model=replace(manifest.model, weights=replace(manifest.model.weights, kind=kind)),
        )
        for kind in ("file", "random")
    )
    asked = replace(random, asked=Asked(budget={"min_agreement": 0.9, "min_sqnr_db": 10}))
    assert trained.budget == budget
    assert random.budget == budget.errors_alone()
    assert asked.budget == replace(budget, max_accuracy_drop=None)


def test_fields_that_a_later_writer_added_are_left_alone(bundle: Path) -> None:
    rewrite_manifest(bundle, lambda document: document.update(signature={"key": "later"}))
    assert Bundle.open(bundle).manifest.name == "tiny-fp32"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not json",
        b"[]",
        b'"text"',
        b"7",
        b"null",
        b'{"schema_version": 1',
        b'{"schema_version": 1}}',
        b'{"schema_version": 1, "name": "\xff"}',
        b"\xff\xfe{\x00}\x00",
        b'{"a":' * 100_000,
        b"\x00" * 100,
    ],
    ids=lambda content: content[:20].decode("latin-1"),
)
def test_a_manifest_that_is_no_json_object_is_named_with_what_came(bundle: Path, content: bytes) -> None:
    (bundle / MANIFEST).write_bytes(content)
    with pytest.raises(
        BundleError,
        match=re.escape(f"{bundle / MANIFEST}: expected a JSON object, got: ") + ".+; export the bundle again",
    ):
        Bundle.open(bundle)


@pytest.mark.parametrize("version", [0, 2, -1, "1", None, [1], 1.5])
def test_another_schema_version_is_refused_before_anything_else(bundle: Path, version: object) -> None:
    (bundle / MANIFEST).write_text(json.dumps({"schema_version": version}))
    with pytest.raises(
        BundleError, match=re.escape(f"{bundle / MANIFEST}: expected schema_version 1, got {version!r}; export again")
    ):
        Bundle.open(bundle)


@pytest.mark.parametrize("field", ["inputs", "outputs"])
def test_a_model_without_inputs_or_outputs_is_none(bundle: Path, field: str) -> None:
    rewrite_manifest(bundle, lambda document: document.update({field: []}))
    with pytest.raises(BundleError, match="expected an input and an output, got"):
        Bundle.open(bundle)


@pytest.mark.parametrize("name", ["a\n::error::b", "a\x1b[31m"])
def test_a_name_that_could_do_more_than_be_shown_is_refused(bundle: Path, name: str) -> None:
    rewrite_manifest(bundle, lambda document: document.update(name=name))
    with pytest.raises(BundleError, match="expected a name of printable characters"):
        Bundle.open(bundle)


def test_no_schema_version_is_another_one(bundle: Path) -> None:
    rewrite_manifest(bundle, lambda document: document.pop("schema_version"))
    with pytest.raises(BundleError, match="expected schema_version 1, got None"):
        Bundle.open(bundle)


def places(document: Any, keys: tuple[Any, ...] = (), path: str = "$") -> Iterator[tuple[tuple[Any, ...], str, Any]]:
    """Every value in a JSON document: the keys that lead to it, the path that errors print, and the value."""
    if keys:
        yield keys, path, document
    if isinstance(document, dict):
        for key, value in document.items():
            yield from places(value, (*keys, key), f"{path}[...]" if path in FREE_KEYS else f"{path}.{key}")
    elif isinstance(document, list):
        for place, value in enumerate(document):
            yield from places(value, (*keys, place), f"{path}[{place}]")


def replaced(document: Any, keys: tuple[Any, ...], value: object) -> Any:
    copy = json.loads(json.dumps(document))
    inner = copy
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    return copy


def wrong_values(path: str, value: object) -> list[object]:
    """Values of every JSON type that the field at `path` does not take."""
    kinds: dict[type, object] = {str: "text", int: 7, float: 0.5, bool: True, list: [], dict: {}, type(None): None}
    taken = {type(value)}
    if isinstance(value, float):
        taken.add(int)  # 1 is a float in JSON
    if isinstance(value, dict) and path not in FREE_KEYS | {"$.asked"}:
        taken.discard(dict)  # an empty object lacks the fields
    if path in NULLABLE:
        taken.add(type(None))
    if ".shape[" in path:
        taken |= {int, str}  # a size or a name
    return [wrong for kind, wrong in kinds.items() if kind not in taken]


def test_a_wrong_type_in_any_field_is_named_by_its_path(manifest: Manifest) -> None:
    asked = Asked(3, "mse", 512, 700, {"min_agreement": 0.9})
    document = json.loads(json_from_manifest(replace(manifest, asked=asked)))
    tried, failures = 0, []
    for keys, path, value in places(document):
        for wrong in wrong_values(path, value):
            tried += 1
            try:
                manifest_from_json(json.dumps(replaced(document, keys, wrong)).encode(), where="MANIFEST")
                failures.append(f"{path} = {wrong!r} was taken")
            except BundleError as error:
                if not str(error).startswith("MANIFEST: ") or (
                    path != "$.schema_version" and f"`{path}`" not in str(error)
                ):
                    failures.append(f"{path} = {wrong!r} is called: {error}")
    assert failures == []
    assert tried > 300


def test_a_manifest_that_says_nothing_of_the_channels_order_is_of_a_network_that_takes_red_first(
    manifest: Manifest,
) -> None:
    colour = dataclasses.replace(manifest.preprocess, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), channels_order="bgr")
    document = json.loads(json_from_manifest(replace(manifest, preprocess=colour)))
    assert document["preprocess"]["channels_order"] == "bgr"
    assert document["preprocess"]["mean"] == [0.1, 0.2, 0.3]
    assert manifest_from_json(json.dumps(document).encode(), where="here").preprocess == colour
    del document["preprocess"]["channels_order"]
    read = manifest_from_json(json.dumps(document).encode(), where="here").preprocess
    assert read == replace(colour, channels_order="rgb")


def test_what_is_said_of_a_source_file_is_read_and_checked(manifest: Manifest) -> None:
    source = SourceFile("x", "nhwc", 1, {"logits": "y"}, ("opset 9 converted to 20",), True, "kept")
    whole = replace(manifest, source_file=source)
    document = json.loads(json_from_manifest(whole))
    assert manifest_from_json(json.dumps(document).encode(), where="here") == whole
    assert (whole.origin_text, whole.reference_text) == ("an ONNX file", "the file tiny")
    for name, wrong in (("layout", "chw"), ("quantized", "perhaps"), ("outputs", ["y"]), ("batch", "one")):
        changed = {**document, "source_file": {**document["source_file"], name: wrong}}
        with pytest.raises(BundleError, match=re.escape(f"`$.source_file.{name}")):
            manifest_from_json(json.dumps(changed).encode(), where="here")


def test_a_missing_field_is_named(manifest: Manifest) -> None:
    document = json.loads(json_from_manifest(manifest))
    tried = 0
    for keys, path, _ in places(document):
        if path.endswith("]") or path in OPTIONAL or path == "$.schema_version":
            continue
        tried += 1
        without = json.loads(json.dumps(document))
        inner = without
        for key in keys[:-1]:
            inner = inner[key]
        del inner[keys[-1]]
        with pytest.raises(BundleError, match=re.escape(f"MANIFEST: Object missing required field `{keys[-1]}`")):
            manifest_from_json(json.dumps(without).encode(), where="MANIFEST")
    assert tried > 50


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch": {"min": 4, "opt": 2, "max": 8}}, "expected a batch range with 1 <= min <= opt <= max, got 4:2:8"),
        ({"batch": {"min": 0, "opt": 2, "max": 8}}, "got 0:2:8"),
        ({"preprocess": {"std": [0.0]}}, "expected finite means and positive standard deviations"),
        ({"preprocess": {"mean": [0.1, 0.2]}}, "expected one mean and one standard deviation per channel, got 2 and 1"),
        ({"preprocess": {"crop": [224]}}, "$.preprocess.crop"),
        (
            {"preprocess": {"interpolation": "magic"}},
            "expected an interpolation among nearest, bilinear, bicubic, lanczos, got 'magic'",
        ),
        ({"preprocess": {"channels_order": "grb"}}, "$.preprocess.channels_order"),
        ({"preprocess": {"channels_order": "bgr"}}, "expected three channels for the order bgr, got 1; take rgb"),
        ({"accuracy": {"interval": [0.1, 0.2, 0.3]}}, "$.accuracy.interval"),
        ({"model": {"weights": {"kind": "stolen", "sha256": ""}}}, "$.model.weights.kind"),
    ],
    ids=str,
)
def test_values_that_contradict_themselves_make_the_bundle_unreadable(
    bundle: Path, change: dict[str, Any], message: str
) -> None:
    def merge(document: dict[str, Any]) -> None:
        for name, value in change.items():
            document[name] = {**document[name], **value} if isinstance(value, dict) else value

    rewrite_manifest(bundle, merge)
    with pytest.raises(
        BundleError,
        match=re.escape(f"{bundle / MANIFEST}: ") + ".*" + re.escape(message) + ".*; export the bundle again",
    ):
        Bundle.open(bundle)


def test_numbers_that_json_cannot_hold_are_refused(bundle: Path) -> None:
    for word in ("NaN", "Infinity", "1e999"):
        text = (bundle / MANIFEST).read_text()
        assert '"sqnr_db": 60.0' in text
        (bundle / MANIFEST).write_text(text.replace('"sqnr_db": 60.0', f'"sqnr_db": {word}'))
        with pytest.raises(BundleError, match="export the bundle again"):
            Bundle.open(bundle)
        (bundle / MANIFEST).write_text(text)

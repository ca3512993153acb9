"""Code in a `reference.pt2` is refused before PyTorch reads it. Each archive here leaves a mark where its code runs."""

from __future__ import annotations

import io
import json
import logging
import os
import pickle
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reference_archives import (  # noqa: F401  # pytest finds the fixture by its name
    CONSTANTS,
    CONSTANTS_CONFIG,
    MODEL,
    SAMPLES,
    WEIGHTS,
    WEIGHTS_CONFIG,
    Parts,
    changed,
    good_fixture,
    nodes,
    run_by_us,
    signature,
    write_parts,
)

from runtimes.bundle_writing import write_manifest
from runtimes.errors import BundleError
from runtimes.manifest import Manifest

MODULE = "stranger_that_leaves_a_mark"


class Mark:
    """Whoever unpickles it makes a folder."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.place),)


def code(place: Path) -> str:
    """An expression that makes the folder; without dots, which part the names of parameters."""
    return f"getattr(__import__('os'),'mkdir')('{place}')"


def pickled(place: Path) -> bytes:
    buffer = io.BytesIO()
    torch.save({"conv1.weight": Mark(place)}, buffer)
    return buffer.getvalue()


# --- ways in: each takes a good archive and the place of the mark ---


def a_pickled_weight(parts: Parts, place: Path) -> Parts:
    def change(config: Any) -> None:
        config["config"]["conv1.weight"]["use_pickle"] = True

    return changed({**parts, f"{WEIGHTS}weight_0": pickled(place)}, change, WEIGHTS_CONFIG)


def with_constant(parts: Parts, file: str, content: bytes, *, as_pickle: bool) -> Parts:
    config = {"config": {"c": {"path_name": file, "is_param": False, "use_pickle": as_pickle, "tensor_meta": None}}}
    return {**parts, f"{CONSTANTS}{file}": content, CONSTANTS_CONFIG: json.dumps(config).encode()}


def a_pickled_constant(parts: Parts, place: Path) -> Parts:
    return with_constant(parts, "tensor_0", pickled(place), as_pickle=True)


def an_opaque_object(parts: Parts, place: Path) -> Parts:
    return with_constant(parts, "opaque_obj_0", pickle.dumps(Mark(place)), as_pickle=True)


def weights_of_an_older_form(parts: Parts, place: Path) -> Parts:
    return {**parts, f"{WEIGHTS}model.pt": pickled(place)}


def constants_of_an_older_form(parts: Parts, place: Path) -> Parts:
    return {**parts, f"{CONSTANTS}model.pt": pickled(place)}


def example_inputs(parts: Parts, place: Path) -> Parts:
    return {**parts, SAMPLES: pickled(place)}


def a_size(parts: Parts, place: Path) -> Parts:
    def change(document: Any) -> None:
        document["graph_module"]["graph"]["tensor_values"]["x"]["sizes"][0]["as_expr"]["expr_str"] = code(place)

    return changed(parts, change)


def the_name_of_an_input(parts: Parts, place: Path) -> Parts:
    return {**parts, MODEL: parts[MODEL].replace(b'"x"', json.dumps(f"x={code(place)}").encode())}


def the_name_of_a_parameter(parts: Parts, place: Path) -> Parts:
    name = f'w"+str({code(place)})+"'
    parts = {
        **parts,
        MODEL: parts[MODEL].replace(b'"parameter_name": "fc.bias"', f'"parameter_name": {json.dumps(name)}'.encode()),
    }
    return {**parts, WEIGHTS_CONFIG: parts[WEIGHTS_CONFIG].replace(b'"fc.bias":', f"{json.dumps(name)}:".encode())}


def a_guard(parts: Parts, place: Path) -> Parts:
    samples = io.BytesIO()
    torch.save(((torch.zeros(2, 1, 28, 28),), {}), samples)  # without them PyTorch leaves guards out
    return changed(
        {**parts, SAMPLES: samples.getvalue()}, lambda document: document.update(guards_code=[f"{code(place)} is None"])
    )


def an_operator_that_makes_a_file(parts: Parts, place: Path) -> Parts:
    def change(document: Any) -> None:
        given = {"filename": {"as_string": str(place)}, "shared": {"as_bool": True}, "size": {"as_int": 8}}
        inputs = [{"name": name, "arg": value, "kind": 1 if name == "filename" else 2} for name, value in given.items()]
        outputs = [{"as_tensor": {"name": "made"}}]
        node = {
            "target": "torch.ops.aten.from_file.default",
            "inputs": inputs,
            "outputs": outputs,
            "metadata": {},
            "name": "made",
        }
        nodes(document).insert(0, node)
        values = document["graph_module"]["graph"]["tensor_values"]
        values["made"] = {**values["linear"], "sizes": [{"as_int": 8}], "strides": [{"as_int": 1}]}

    return changed(parts, change)


def a_type_of_the_arguments(parts: Parts, place: Path) -> Parts:
    def change(document: Any) -> None:
        context = {"default_factory_module": MODULE, "default_factory_name": "dict", "dict_context": []}
        tree = {"type": "collections.defaultdict", "context": context, "children_spec": []}
        signature(document)["out_spec"] = json.dumps([1, tree])

    return changed(parts, change)


def an_enumeration_among_the_arguments(parts: Parts, place: Path) -> Parts:
    def change(document: Any) -> None:
        context = json.dumps([{"__enum__": True, "fqn": f"{MODULE}:Kind", "name": "ONE"}])
        signature(document)["out_spec"] = json.dumps(
            [1, {"type": "builtins.dict", "context": context, "children_spec": []}]
        )

    return changed(parts, change)


RUN_BY_PYTORCH = [
    a_pickled_weight,
    a_pickled_constant,
    an_opaque_object,
    weights_of_an_older_form,
    constants_of_an_older_form,
    example_inputs,
    a_size,
    the_name_of_an_input,
    the_name_of_a_parameter,
    a_guard,
    an_operator_that_makes_a_file,
    a_type_of_the_arguments,
    an_enumeration_among_the_arguments,
]


@pytest.fixture
def quiet() -> Iterator[None]:
    """Of what PyTorch itself says when it reads a stranger's archive."""
    logging.disable(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logging.disable(logging.NOTSET)


def run_by_pytorch(path: Path) -> None:
    with suppress(Exception):
        torch.export.load(path).module()(torch.zeros(2, 1, 28, 28))


@pytest.mark.parametrize("way_in", RUN_BY_PYTORCH, ids=lambda way_in: way_in.__name__)
def test_code_that_pytorch_would_run_is_refused_and_not_run(
    way_in: Callable[[Parts, Path], Parts], good: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quiet: None
) -> None:
    place = tmp_path / "mark"
    (tmp_path / f"{MODULE}.py").write_text(f"import os\nos.mkdir({str(place)!r})\n")
    monkeypatch.syspath_prepend(tmp_path)
    path = write_parts(tmp_path / "reference.pt2", way_in(good, place))
    with pytest.raises(BundleError, match="nothing of it was run: do not use this file") as caught:
        run_by_us(path)
    assert caught.value.exit_code == 1
    assert not place.exists()
    assert MODULE not in sys.modules
    run_by_pytorch(path)
    assert place.exists()  # a way in it is
    sys.modules.pop(MODULE, None)


def test_check_ends_with_1_and_runs_nothing_of_a_strangers_bundle(
    good: Parts, manifest: Manifest, tiny_model: Path, tmp_path: Path, deploy: Any
) -> None:
    place, folder = tmp_path / "mark", tmp_path / "bundle"
    folder.mkdir()
    write_parts(folder / "reference.pt2", a_pickled_weight(good, place))
    np.savez(folder / "golden.npz", inputs=np.zeros((2, 1, 28, 28), np.float32), logits=np.zeros((2, 10), np.float32))
    write_manifest(folder, manifest)  # its digests are right: they say who changed nothing, not who made it
    ran = deploy("check", folder, "--backend", "pytorch", "--quiet")
    assert ran.code == 1
    assert "pytorch      failed" in ran.out
    assert "'conv1.weight' as a pickle or an object" in ran.out
    assert not place.exists()

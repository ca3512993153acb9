"""The readers of bundles and of what lies in them: manifest, labels, golden arrays, programs, engines, settings, journals."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from data_sets import PIXELS
from fuzz_formats import spoilt_archive, spoilt_array
from fuzz_mutate import spoilt_bytes, spoilt_json, spoilt_text
from fuzz_readers import Reader, Spoil

from calibration.data import built_in
from exporter.cli import deploy
from exporter.pipeline.search_journal import Journal
from exporter.verification.accuracy.resume_file import (
    EvaluatedShard,
    EvaluationKey,
    data_digest,
    finished_shards,
    open_resume_file,
)
from exporter.verification.bundle_diff import changes
from exporter.verification.parity_toml import entries_from_toml, plan_from_entry
from runtimes import Bundle, open_runtime
from runtimes.backends.pytorch import PyTorchRuntime
from runtimes.block_precision import Tried
from runtimes.bundle import MANIFEST
from runtimes.errors import ResnetExportError
from runtimes.manifest import json_from_manifest
from runtimes.nvidia.engine_choice import Here, engine_for, loadable_engine
from runtimes.nvidia.engine_file import (
    SCHEMA_VERSION,
    DeviceFacts,
    EngineFacts,
    LayerFacts,
    json_from_facts,
    seal_facts,
)
from runtimes.nvidia.plan_files import platform_text, sidecar_of
from runtimes.nvidia.trust import ensure_machine_key
from runtimes.parity.golden import golden_evidence, golden_report
from runtimes.specs import BatchRange

NAME = "bundle"
MOST_ROWS = 1024
"""A network takes the memory of the batch that its file or manifest asks for: more rows are not run here."""


def command(*words: object) -> str:
    """A command line of `resnet-deploy`, in this process and without its last step, which prints an error of ours.

    Raises:
        ResnetExportError: as the command does. What click refuses is none of a file's affair.
    """
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
        deploy.command.main([str(word) for word in words], prog_name="resnet-deploy", standalone_mode=False)
    return out.getvalue()


def bundle_readers(sample: Path) -> list[Reader]:
    """Of a whole bundle; `sample` is one that is right, with a program, golden arrays and labels."""
    good = Bundle.open(sample)
    runtime = open_runtime(sample / "model.onnx", tuning=replace(_tuning(), threads=1))
    pictures = PIXELS[..., 0]

    def inside(name: str) -> Callable[[Path, bytes], Path]:
        """Put the file into a copy of the bundle, whose manifest vouches for it."""

        def place(folder: Path, data: bytes) -> Path:
            bundle = _copied(sample, folder)
            (bundle / name).unlink()
            (bundle / name).write_bytes(data)
            if name != MANIFEST:
                document = json.loads(json_from_manifest(good.manifest))
                (bundle / MANIFEST).unlink()  # a link to the sample's
                document["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
                (bundle / MANIFEST).write_text(json.dumps(document))
            return bundle

        return place

    def show(folder: Path) -> None:
        bundle = Bundle.open(folder)
        _ = (bundle.rejection, bundle.labels)
        command("inspect", folder)
        command("inspect", folder, "--json")
        changes(good, bundle)
        command("build", folder, "--print-trtexec")

    def measure(folder: Path) -> None:
        bundle = Bundle.open(folder)
        if bundle.manifest.batch.max <= MOST_ROWS:
            golden_report(bundle, "onnxruntime", runtime)
        else:
            golden_evidence(bundle)

    def evaluate(folder: Path) -> None:
        np.savez(folder.parent / "data.npz", images=pictures, labels=np.arange(6))
        if Bundle.open(folder).manifest.batch.min <= MOST_ROWS:
            command("eval", folder, "--data", folder.parent / "data.npz", "--quiet", "--threads", "1")

    def ship(folder: Path) -> None:
        target = folder.parent / "out"
        shutil.rmtree(target, ignore_errors=True)
        command("triton", folder, "--output", target)

    manifest = [json_from_manifest(good.manifest)]
    labels = [(sample / "labels.txt").read_bytes()]
    golden = [(sample / "golden.npz").read_bytes()]
    program = [(sample / "reference.pt2").read_bytes()]

    def part(name: str) -> Spoil:
        return spoilt_json if name.endswith(".json") else spoilt_bytes

    def open_program(path: Path) -> None:
        with PyTorchRuntime.open(path) as model:
            model.run({"input": np.zeros((2, 1, 28, 28), np.float32)})

    return [
        Reader("manifest shown", NAME, manifest, spoilt_json, show, 100, place=inside(MANIFEST)),
        Reader("manifest measured", NAME, manifest, spoilt_json, measure, 60, place=inside(MANIFEST)),
        Reader(
            "manifest evaluated",
            NAME,
            manifest,
            spoilt_json,
            evaluate,
            40,
            place=inside(MANIFEST),
            writes=True,
            named="expected",
        ),
        Reader("manifest shipped", NAME, manifest, spoilt_json, ship, 40, place=inside(MANIFEST), writes=True),
        Reader("bundle's labels", NAME, labels, spoilt_text, show, 30, place=inside("labels.txt")),
        Reader(
            "golden.npz", NAME, golden, spoilt_archive(lambda _: spoilt_array), measure, 60, place=inside("golden.npz")
        ),
        Reader("reference.pt2", "reference.pt2", program, spoilt_archive(part), open_program, 12),
    ]


def _tuning() -> Any:
    from runtimes.tuning import DEFAULT_TUNING

    return DEFAULT_TUNING


def _copied(sample: Path, folder: Path) -> Path:
    """A copy that is made once for a folder, of links to the same files."""
    bundle = folder / NAME
    if not bundle.exists():
        shutil.copytree(sample, bundle, copy_function=os.link)
    return bundle


def settings_readers(sample: Path) -> list[Reader]:
    """Of what commands leave behind, and are given."""
    source = built_in("test").subset(np.arange(6))
    assert source.labels is not None
    key = EvaluationKey("0" * 64, "1" * 64, "onnxruntime", "cpu", "1:4:8", 6, 4, data_digest(source))
    rows = tuple((place, int(source.labels[place]), 1, 2, 3) for place in range(5))
    shards = [EvaluatedShard(0, 4, rows[:4], (), 0.1, 0.2), EvaluatedShard(4, 6, rows[4:], ("x: bad",), 0.1, 0.2)]
    lines = b"".join(msgspec.json.encode(one) + b"\n" for one in (key, *shards))
    tried = [
        Tried(("layer1.0",), "ok", 100, 0.01, (0.0, 0.02), (), 0.9, 1000),
        Tried((), "broken", 100, 0.1, (0.05, 0.2), ("x",), 1.0, 900),
    ]
    journal = msgspec.json.encode({"digest": "d", "tried": tried})
    toml = f"""backends = ["onnxruntime"]
data = "images/"
images = 512
timeout_s = 600.0

[budget]
min_agreement = 0.99

[[bundles]]
path = "{sample}"
against = "{sample}"
budget = {{ min_sqnr_db = 25.0 }}

[[bundles]]
path = "{sample}"
""".encode()

    def resume(path: Path) -> None:
        for shard in finished_shards(path, source):
            _ = shard.rows
        with open_resume_file(path, key) as opened:
            for shard in opened.shards(source, 4):
                _ = shard.rows

    def go_on(path: Path) -> None:
        for one in Journal(path, "d", lambda said: None).tried.values():
            _ = one.verdict, one.limits[1]

    def plan(path: Path) -> None:
        for entry in entries_from_toml(path):
            plan_from_entry(entry)

    return [
        Reader("resume file", "resume.jsonl", [lines], _spoilt_lines, resume, writes=True),
        Reader("search journal", "x.search.json", [journal], spoilt_json, go_on),
        Reader("resnet-parity.toml", "resnet-parity.toml", [toml], spoilt_text, plan),
    ]


def _spoilt_lines(data: bytes, draw: Any, others: Any = ()) -> bytes:
    """Lines of JSON: one of them changed, or the order and number of them."""
    if draw.random() < 0.3:
        return spoilt_text(data, draw, others)
    lines = data.split(b"\n")
    place = draw.randrange(len(lines))
    lines[place] = spoilt_json(lines[place] or b"{}", draw)
    return b"\n".join(lines)


def engine_readers(sample: Path) -> list[Reader]:
    """Of plans and their sidecars, none of which is given to TensorRT."""
    plan = b"ftrt" + bytes(20) + bytes((10, 3, 0, 30)) + bytes(range(256))
    model = Bundle.open(sample).manifest.files["model.onnx"].sha256
    facts = EngineFacts(
        SCHEMA_VERSION, "tensorrt", "10.3.0.30", ("sm87",), platform_text(), DeviceFacts("stand-in", "sm87", "12.6"),
        BatchRange(1, 4, 8), "fp32", "strong", {"workspace_bytes": 1 << 20, "dla_core": 0},
        LayerFacts({"conv": {"half": 3}}, {"half": 3}, ("x",), ("a",), ("b",)), 1.5, True, model,
        hashlib.sha256(plan).hexdigest(), len(plan), "0" * 64,
    )  # fmt: skip
    here = Here("tensorrt", "10.3.0.30", "sm87")
    name = "tensorrt-10.3.0.30-sm87-b1-4-8.engine"

    def place(spoilt: str) -> Callable[[Path, bytes], Path]:
        def put(folder: Path, data: bytes) -> Path:
            engine = _copied(sample, folder) / "engines" / name
            engine.parent.mkdir(exist_ok=True)
            engine.write_bytes(data if spoilt == "plan" else plan)
            sealed = json_from_facts(seal_facts(facts, ensure_machine_key()))
            sidecar_of(engine).write_bytes(sealed if spoilt == "plan" else data)
            return engine

        return put

    def look(engine: Path) -> None:
        problems = []
        for read in (
            lambda: command("inspect", engine),
            lambda: command("inspect", engine, "--json"),
            lambda: loadable_engine(engine, lambda: here, [facts.engine_sha256]),
            lambda: engine_for(Bundle.open(engine.parents[1]), here, [facts.engine_sha256]),
        ):
            try:
                read()
            except ResnetExportError as error:
                problems.append(error)
        if problems:
            raise problems[0]

    stem = Path(name).stem
    sidecar = json_from_facts(facts)
    return [
        Reader("plan", name, [plan], spoilt_bytes, look, 30, place=place("plan"), named=stem),
        Reader("sidecar", name, [sidecar], spoilt_json, look, place=place("sidecar"), named=stem),
    ]

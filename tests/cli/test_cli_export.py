"""`resnet-export` as a stranger meets it: what it prints, what it refuses, and with which exit code."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch

from calibration.data import FASHION_MNIST_CLASSES, built_in
from exporter import ExportPlan
from exporter.cli.export import _summary, command
from exporter.lowering.precisions import fp32
from exporter.lowering.registry import precision_names
from exporter.models.loaded import LoadedModel
from exporter.models.loading import load_model
from exporter.models.sources.cifar import CifarResNet
from exporter.pipeline.choose_images import opened_data, proof_images
from exporter.pipeline.export import Export
from exporter.pipeline.proof_images import ProofImages
from runtimes import Bundle, open_runtime
from runtimes.manifest import Manifest
from runtimes.progress import Steps


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("checkpoint") / "c.pth"
    torch.save(CifarResNet(3, 3, 4).state_dict(), path)
    return path


REFUSED = [
    (["resnet20", "--std", "0"], 2, "expected --std above 0, got 0"),
    (["resnet20", "--proof-images", "0"], 2, "expected --proof-images of at least 1, got 0"),
    (["resnet20", "--proof-images", "-5"], 2, "expected --proof-images of at least 1, got -5"),
    (["resnet20", "--features", "pool", "--proof-images", "9"], 2, "--proof-images is about classes"),
    (["resnet20", "--budget", "min_cosin=0.9"], 2, "unknown budget 'min_cosin'; did you mean min_cosine?"),
    (["resnet20", "--budget", "min_agreement=2"], 2, "expected min_agreement from 0 to 1, got 2"),
    (["resnet20", "--budget", "min_agreement"], 2, "expected --budget as NAME=VALUE, got 'min_agreement'"),
    (["resnet20", "--features", "pool", "--budget", "min_agreement=0.9"], 2, "min_agreement is about classes"),
    (["resnet20", "--batch", "4", "--budget", "max_batch_difference=0.1"], 2, "is about several batch sizes"),
    (
        ["resnet18", "--weights", "random", "--budget", "max_accuracy_drop=0.1"],
        2,
        "max_accuracy_drop needs pictures whose classes are the model's; give such --data",
    ),
    (
        ["resnet20", "--weights", "random", "--num-classes", "1", "--budget", "min_cosine=0.9"],
        2,
        "min_cosine is about the direction of several values",
    ),
    (["resnet20", "--int8", "--calibration-images", "10"], 2, "expected --calibration-images of at least 64, got 10;"),
    (
        ["resnet18", "--shortcut", "pad", "--weights", "random"],
        2,
        "'pad' means nothing for resnet18: it comes in one form",
    ),
    (["resnet20", "--int8", "--calibration", "x.json"], 2, "--calibration: there is no file x.json; give"),
    (
        ["resnet4"],
        2,
        "unknown model 'resnet4'; did you mean resnet44 or resnet34 or resnet56? `resnet-export --list` shows all",
    ),
    (["alexnet"], 2, "unknown model 'alexnet'; choose from resnet101"),
    ([], 2, ""),
    (["resnet20", "--fp16", "--fp32"], 2, "expected one precision, got --fp16 and --fp32"),
    (["resnet20", "--batch", "0"], 2, "1 <= min <= opt <= max, got 0:0:0"),
    (["resnet20", "--batch", "8:4:2"], 2, "1 <= min <= opt <= max, got 8:4:2"),
    (["resnet20", "--batch", "x"], 2, "expected a batch as N or MIN:OPT:MAX, got 'x'"),
    (["resnet20", "--batch", "1:2"], 2, "expected a batch as N or MIN:OPT:MAX, got '1:2'"),
    (["resnet20", "--opset", "21"], 2, "expected an opset among 19, 20, got 21"),
    (["resnet20", "--opset", "0"], 2, "0 is not in the range x>=1"),
    (["resnet20", "--bf16", "--fp16"], 2, "expected one precision, got --bf16 and --fp16"),
    (
        ["resnet20", "--bf16", "--opset", "20"],
        2,
        "expected opset 22 for bf16, got 20; ONNX has no BF16 convolution before it, leave --opset out",
    ),
    (
        ["resnet20", "--fp16", "--opset", "22"],
        2,
        "expected an opset among 19, 20, got 22; TensorRT 10.3 reads none above 20",
    ),
    (["resnet20", "--target", "toaster"], 2, "unknown target 'toaster'"),
    (["resnet20", "--image-size", "big"], 2, "expected --image-size as N or HxW, got 'big'"),
    (["resnet20", "--image-size", "4"], 2, "at least 8 pixels for resnet20, got 4x4"),
    (["resnet20", "--mean", "a,b"], 2, "expected --mean as numbers between commas"),
    (["resnet20", "--mean", "0.1,0.2"], 2, "expected --mean with 1 value, got 2; the model has 1 input channel"),
    (
        ["resnet20", "--mean", "123.68"],
        2,
        "expected --mean of at most 1, on pixels of 0..1, got 123.68; add --scale 255",
    ),
    (
        ["resnet20", "--mean", "300", "--std", "1", "--scale", "255"],
        2,
        "expected --mean of at most 255, on pixels of 0..255, got 300",
    ),
    (
        ["resnet20", "--scale", "255"],
        2,
        "and there is no --mean and --std; give both: --mean 0 --std 1 for a network that takes such pixels as they are",
    ),
    (["resnet20", "--scale", "255", "--mean", "0"], 2, "and there is no --std; give both"),
    (["resnet20", "--scale", "255", "--std", "1"], 2, "and there is no --mean; give both"),
    (["resnet20", "--scale", "256"], 2, "expected a --scale of 1 or 255, the largest value of a pixel, got 256"),
    (["resnet20", "--scale", "0"], 2, "expected a --scale of 1 or 255, the largest value of a pixel, got 0"),
    (["resnet20", "--channels-order", "grb"], 2, "'grb' is not one of 'rgb', 'bgr'"),
    (
        ["resnet20", "--channels-order", "bgr"],
        2,
        "expected --channels-order bgr for a model of 3 input channels, got one of 1; leave it out",
    ),
    (["resnet20", "--interpolation", "cubic"], 2, "'cubic' is not one of 'nearest', 'bilinear', 'bicubic', 'lanczos'"),
    (["resnet20", "--resize", "big"], 2, "expected --resize as N or HxW, got 'big'; for example 224 or 224x320"),
    (
        ["resnet20", "--resize", "27"],
        2,
        "expected --resize of at least the input's 28x28, got 27: every picture would get a black border; give --resize 28,",
    ),
    (["resnet20", "--resize", "0"], 2, "expected --resize of at least the input's 28x28, got 0"),
    (["resnet20", "--resize", "40x27"], 2, "got 40x27: every picture would get a black border; give --resize 28x28,"),
    (["resnet20", "--image-size", "64", "--resize", "63"], 2, "give --resize 64, or a smaller --image-size"),
    (["resnet20", "--resize", "9999999999"], 2, "expected --resize of at most 65536 pixels, got 9999999999"),
    (["resnet20", "--num-classes", "10"], 2, "--num-classes needs --weights random or FILE"),
    (["resnet20", "--weights", "random", "--num-classes", "0"], 2, "--num-classes of at least 1"),
    (["resnet20", "--weights", "random", "--seed", "-1"], 2, "expected a --seed from 0"),
    (["resnet20", "--weights", "nothing.pth"], 2, "--weights: there is no file nothing.pth; give default, random or"),
    (["resnet20", "--nonsense"], 2, " --help"),
    (["resnet50", "--image-size", "31"], 2, "at least 32 pixels for resnet50, got 31x31"),
    (["resnet56"], 2, "resnet56 has no default weights; give --weights random or FILE"),
    (
        ["resnet18", "--variant", "v1"],
        2,
        "'v1' means nothing for resnet18: its basic blocks are the same in v1 and v1.5; leave the option out",
    ),
    (["resnet50", "--shortcut", "pad"], 2, "resnet50 comes as v1.5 or v1, not as 'pad'"),
    (["resnet50", "--variant", "v2"], 2, "'v2' is not one of 'v1.5', 'v1'"),
    (["resnet20", "--shortcut", "pad", "--variant", "v1"], 2, "expected --variant or --shortcut, got both"),
    (["resnet20", "--shortcut", "pad"], 2, "the default weights are those of projection, not of pad"),
    (["resnet20", "--labels", "missing"], 2, "--labels: there is no file or folder missing"),
    (["no_such_package:net"], 2, "expected --image-size with no_such_package:net, got none"),
    (
        ["no_such_package:net", "--image-size", "32"],
        2,
        "there is no module 'no_such_package' in this folder or among the installed packages",
    ),
    (["resnet20", "--output", "/proc/nothing/here"], 1, "cannot write /proc/nothing/here"),
]


@pytest.mark.parametrize(
    ("arguments", "code", "says"), REFUSED, ids=[" ".join(case[0]) or "nothing" for case in REFUSED]
)
def test_what_is_asked_for_wrongly_is_one_line_and_leaves_nothing(
    run: Any, tmp_path: Path, arguments: list[str], code: int, says: str
) -> None:
    ran = run(*arguments)
    assert ran.code == code
    if arguments:
        assert says in ran.error
    else:
        assert "Usage: " in ran.err
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_is_there_or_in_the_way_is_refused_before_any_work(run: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "is not a folder" in run("resnet20", "--output", "file").error
    assert "cannot write file/below" in run("resnet20", "--output", "file/below").error
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("")
    assert "holds something else than a bundle" in run("resnet20", "--output", "photos", "--force").error
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["cat.jpg", "file", "photos"]


def test_a_bundle_holds_what_the_design_says_and_runs_everywhere(run: Any, tmp_path: Path) -> None:
    ran = run("resnet20", "--fp16", "--json")
    assert ran.code == 0
    assert set(ran.json) >= {
        "bundle",
        "seconds",
        "schema_version",
        "parity",
        "accuracy",
        "files",
        "preprocess",
        "versions",
    }
    bundle = Bundle.open(tmp_path / "resnet20-fp16")
    assert set(bundle.manifest.files) == {"model.onnx", "reference.pt2", "golden.npz", "labels.txt", "report.html"}
    assert bundle.manifest.accuracy is not None
    assert bundle.manifest.accuracy.images == 2000
    assert bundle.manifest.accuracy.top1 > 0.93
    assert bundle.labels is not None
    assert bundle.labels[0] == "T-shirt/top"
    golden = np.load(bundle.file("golden.npz"))
    for backend in ("onnxruntime", "pytorch"):
        with open_runtime(bundle, backend) as runtime:
            logits = runtime.run({"input": golden["inputs"]})["logits"]
        assert np.abs(logits - golden["logits"]).max() <= 1e-2 * np.abs(golden["logits"]).max()
    exists = run("resnet20", "--fp16")
    assert exists.code == 2
    assert "give --force" in exists.error


@pytest.fixture(scope="module")
def shipped() -> LoadedModel:
    return load_model(ExportPlan("resnet20", Path("unused")).model_request)


def images_of(loaded: LoadedModel, data: Path | None) -> tuple[ProofImages, list[str]]:
    """What an export proves itself with on such a model and --data, and what it says on the way."""
    said: list[str] = []
    plan = ExportPlan("resnet20", Path("unused"), data=None if data is None else str(data))
    steps = Steps(lambda step, done=0, total=0: said.append(step))
    return proof_images(loaded, plan, opened_data(plan), fp32.BUDGET, steps), said


def tree(folder: Path, names: Sequence[str], count: int = 60) -> Path:
    """Test pictures in folders; those of class i in folder `names[i]`."""
    source = built_in("test")
    assert source.labels is not None
    for place in range(count):
        path = folder / names[source.labels[place] % len(names)] / f"{place:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        source.image(place).save(path)
    return folder


def test_class_folders_are_matched_as_check_and_eval_match_them(shipped: LoadedModel, tmp_path: Path) -> None:
    names = [name.upper().replace("/", "_").replace(" ", "-") for name in FASHION_MNIST_CLASSES]
    images, said = images_of(shipped, tree(tmp_path, names))
    labels, found = built_in("test").labels, images.first.labels
    assert found is not None
    assert labels is not None
    assert sorted(found.tolist()) == sorted(labels[:60].tolist())
    with torch.inference_mode():
        answers = shipped.module(torch.from_numpy(images.first.inputs)).argmax(1).numpy()
    assert (answers == found).mean() > 0.9
    assert (images.no_accuracy, said) == ("", [])


def test_a_thousand_wordnet_folders_are_imagenets_classes(shipped: LoadedModel, tmp_path: Path) -> None:
    built_in("test").image(0).save(tmp_path / "a.png")
    for place in range(1000):
        (tmp_path / "val" / f"n{1000 - place:08}").mkdir(parents=True)
        (tmp_path / "val" / f"n{1000 - place:08}" / "a.png").symlink_to(tmp_path / "a.png")
    of_imagenet = replace(
        shipped, facts=replace(shipped.facts, classes=1000), labels=tuple(f"label {place}" for place in range(1000))
    )
    images, said = images_of(of_imagenet, tmp_path / "val")
    found = [int(label) for block in images.blocks() if block.labels is not None for label in block.labels]
    assert (sorted(found), images.no_accuracy, said) == (list(range(1000)), "", [])


@pytest.mark.parametrize(
    ("names", "labels", "why"),
    [
        (("cat", "dog"), FASHION_MNIST_CLASSES, "got 2 others ('cat', 'dog'); rename them"),
        (("n02084071", "n02121808"), FASHION_MNIST_CLASSES, "give resnet-deploy eval --synsets"),
        (("cat", "dog"), None, "and it has no labels to know them by; export it with --labels"),
        (("0", "00"), None, "got one number in two spellings"),
    ],
)
def test_classes_that_are_not_the_models_leave_out_accuracy_and_say_why(
    shipped: LoadedModel, tmp_path: Path, names: Sequence[str], labels: tuple[str, ...] | None, why: str
) -> None:
    images, said = images_of(replace(shipped, labels=labels), tree(tmp_path, names))
    assert (images.first.labels, images.most, why in images.no_accuracy) == (None, 32, True)
    assert said == [f"left out: accuracy, {images.no_accuracy}"]


def test_built_in_pictures_that_nobody_asked_for_are_matched_by_name_alone_and_in_silence(shipped: LoadedModel) -> None:
    for labels in (None, tuple("abcdefghij")):
        images, said = images_of(replace(shipped, labels=labels), None)
        assert (images.first.labels, images.no_accuracy, said) == (None, "", [])


def test_why_accuracy_is_not_measured_stands_where_it_would(manifest: Manifest) -> None:
    lines = _summary(Export(Path("b"), replace(manifest, accuracy=None), {}, "no such classes"), {})
    assert "accuracy     not measured: no such classes" in lines
    assert not any("not measured" in line for line in _summary(Export(Path("b"), manifest, {}), {}))


def test_a_checkpoint_is_exported_with_its_own_classes_channels_size_and_labels(
    run: Any, tmp_path: Path, checkpoint: Path
) -> None:
    (tmp_path / "labels.txt").write_text("ant\nbee\ncat\ndog\n")
    options = [
        "--weights",
        checkpoint,
        "--labels",
        "labels.txt",
        "--image-size",
        "32x24",
        "--mean",
        "0.5",
        "--std",
        "0.2,0.3,0.4",
        "--batch",
        "4",
    ]
    ran = run("resnet20", *options, "--no-reference", "--output", "out", "--json", "--quiet")
    assert ran.err == ""
    facts = ran.json
    assert facts["inputs"] == [{"name": "input", "dtype": "float32", "shape": [4, 3, 32, 24]}]
    assert facts["outputs"][0]["shape"] == [4, 4]
    assert facts["preprocess"]["mean"] == [0.5] * 3
    assert facts["preprocess"]["std"] == [0.2, 0.3, 0.4]
    assert facts["model"]["weights"]["kind"] == "file"
    assert facts["precision"] == "fp32"
    assert facts["batch"] == {"min": 4, "opt": 4, "max": 4}
    assert "reference.pt2" not in facts["files"]
    assert (tmp_path / "out" / "labels.txt").read_text() == "ant\nbee\ncat\ndog\n"


def test_out_of_budget_ends_with_4_the_report_and_no_bundle(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from exporter.lowering.precisions import fp16
    from runtimes import Budget

    monkeypatch.setattr(fp16, "BUDGET", Budget(own_error=0.0, max_relative_error=1e-7))
    ran = run("resnet20", "--fp16", "--weights", "random", "--quiet")
    assert ran.code == 4
    assert "largest relative error" in ran.error
    assert "OUT OF BUDGET" in ran.err
    assert list(tmp_path.iterdir()) == []


def test_a_failure_in_any_step_leaves_nothing(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from exporter.pipeline import export as pipeline

    for step in ("clean_graph", "prove", "write_bundle"):

        def full(*arguments: object, **options: object) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(pipeline, step, full)
            ran = run("resnet20", "--weights", "random", "--quiet")
        assert ran.code == 1
        assert "No space left on device; free some room" in ran.error
        assert list(tmp_path.iterdir()) == []


def test_a_dry_run_refuses_the_output_that_the_export_would(run: Any, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    for words in ((), ("--force",)):
        ran = run("resnet20", "--weights", "random", "--output", tmp_path / "mine", *words, "--dry-run")
        assert (ran.code, "mine" in ran.error) == (2, True)


def test_dry_run_and_list_say_what_there_is_and_load_nothing_heavy(run: Any, tmp_path: Path) -> None:
    assert (
        run("resnet50", "--variant", "v1", "--weights", "random", "--dry-run", "--json").json["output"]
        == "resnet50-v1-fp32"
    )
    assert run("resnet20", "--shortcut", "pad", "--weights", "random", "--dry-run", "--json").json["variant"] == "pad"
    planned = run("resnet50", "--fp16", "--dry-run", "--json")
    assert planned.json["output"] == "resnet50-fp16"
    assert "nothing was written" in run("resnet50", "--dry-run").out
    limited = run(
        "resnet50", "--int8", "--budget", "min_agreement=0.99", "--proof-images", "500", "--dry-run", "--json"
    )
    assert (limited.json["budget"], limited.json["proof_images"]) == ({"min_agreement": 0.99}, 500)
    assert {name: run("resnet50", f"--{name}", "--dry-run", "--json").json["opset"] for name in precision_names()} == {
        "bf16": 22,
        "fp16": 20,
        "fp32": 20,
        "int8": 20,
    }
    assert run("resnet50", "--opset", "19", "--dry-run", "--json").json["opset"] == 19
    assert not {"labels.txt", "calibration.json"} & set(planned.json["files"])
    assert "labels.txt, if class names come with the weights" in run("resnet50", "--dry-run").out
    assert "calibration.json" in run("resnet50", "--int8", "--dry-run", "--json").json["files"]
    assert "labels.txt" in run("resnet50", "--labels", "x.txt", "--dry-run", "--json").json["files"]
    assert "labels.txt" not in run("resnet50", "--features", "pool", "--dry-run").out
    listed = run("--list")
    assert "resnext101_64x4d" in listed.out
    assert "resnet1202" in listed.out
    assert run("--list", "--json").json["resnet20"]["size"] == 28
    assert list(tmp_path.iterdir()) == []
    probe = (
        "import sys; sys.argv[1:] = {arguments!r}\n"
        "from exporter.cli.export import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {{'torch', 'torchvision', 'onnx', 'onnxruntime', 'numpy', 'PIL', 'msgspec', 'rich.console'}} & set(sys.modules)\n"
        "sys.exit(f'loaded {{heavy}}' if heavy else 0)"
    )
    for arguments in (
        ["--help"],
        ["--list"],
        ["resnet50", "--fp16", "--dry-run"],
        ["resnet50", "--bf16", "--dry-run"],
        ["resnet5"],
        ["a:b", "--image-size", "8", "--dry-run"],
    ):
        done = subprocess.run(
            [sys.executable, "-c", probe.format(arguments=arguments)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr


def test_help_names_every_precision_and_exit_code(run: Any) -> None:
    helped = run("--help")
    assert helped.code == 0
    assert all(f"--{name}" in helped.out for name in precision_names())
    assert "4 out of budget or undecided" in helped.out
    assert "resnet-export, version" not in helped.out
    assert "version" in run("--version").out


def test_help_lists_every_option_in_its_group_within_80_columns(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = run("--help").out.splitlines()
    headings = [line for line in lines if line.endswith(":") and not line.startswith(" ")]
    assert headings == [
        "Model:",
        "Precision:",
        "Proof and calibration:",
        "Input:",
        "Output:",
        "Several workers:",
        "Other:",
    ]
    assert [line.split()[0] for line in lines[lines.index("Other:") :] if line.startswith("  --")] == [
        "--version",
        "--help",
    ]
    assert "\N{NO-BREAK SPACE}" not in "".join(lines)
    assert max(map(len, lines)) <= 80
    flags = [line.split()[0] for line in lines if line.startswith("  --")]
    options = [one for one in command.get_params(click.Context(command)) if isinstance(one, click.Option)]
    assert sorted(flags) == sorted(one.opts[0] for one in options)


def test_json_is_one_object_on_stdout_whatever_else_is_said(run: Any) -> None:
    ran = run("resnet20", "--weights", "random", "--json", "--output", "out")
    assert isinstance(json.loads(ran.out), dict)
    assert "prove" in ran.err


def test_without_the_export_extra_the_command_names_it(tmp_path: Path) -> None:
    """As in a base install: the packages of the extra cannot be imported."""
    code = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(['onnx', 'torch'], None))\n"
        "sys.argv = ['resnet-export', 'resnet20']\n"
        "from exporter.cli.export import main\n"
        "main()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert (
        done.stderr.splitlines()[-1]
        == "error: exporting needs the package 'onnx', which is not installed; pip install 'resnet-export[export]'"
    )
    assert list(tmp_path.iterdir()) == []

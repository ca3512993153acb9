"""Weights: random ones that behave, checkpoints in all their shapes, and what is refused."""

from __future__ import annotations

import hashlib
import os
import pickle
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from calibration.data import built_in, inputs_from_source
from exporter import ExportPlan
from exporter.models.backbone import with_features
from exporter.models.loaded import LoadedModel
from exporter.models.loading import load_model
from exporter.models.random_start import PATCH_SHARE, _take_in_patches
from exporter.models.sources.cifar import CifarResNet
from runtimes.errors import BadInput, PlanError, WeightsUnavailable
from runtimes.parity.measures import sqnr_db


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    torch.manual_seed(3)
    return CifarResNet(3, 1, 7).state_dict()


def load(weights: str | Path, tmp_path: Path, model: str = "resnet20", **changes: Any) -> LoadedModel:
    return load_model(ExportPlan(model, tmp_path / "out", weights=str(weights), **changes).model_request)


def saved(value: object, path: Path) -> Path:
    torch.save(value, path)
    return path


def test_random_weights_depend_on_the_seed_alone_and_leave_torchs_generator_alone(tmp_path: Path) -> None:
    torch.manual_seed(11)
    before = torch.random.get_rng_state()
    one, same = load("random", tmp_path), load("random", tmp_path)
    other = load("random", tmp_path, seed=1)
    assert one.facts.weights.sha256 == same.facts.weights.sha256 != other.facts.weights.sha256
    assert torch.equal(torch.random.get_rng_state(), before)


def test_random_weights_have_a_trained_networks_scale(tmp_path: Path) -> None:
    module = load("random", tmp_path, "resnet18").module
    last = [block.bn2.weight for stage in (module.layer1, module.layer4) for block in stage]  # type: ignore[union-attr]  # torch types submodules loosely
    assert all(torch.all(weight == 0.1) for weight in last)
    with torch.inference_mode():
        logits = module(torch.randn(4, 3, 224, 224, generator=torch.Generator().manual_seed(0)))
    assert logits.abs().max() < 100


def gains_db(loaded: LoadedModel) -> list[float]:
    """By how much each convolution but the first answers real images louder than white noise of its inputs' power."""
    found: list[float] = []

    def measure(layer: nn.Module, inputs: Any, output: Tensor) -> None:
        assert isinstance(layer, nn.Conv2d)
        noise = (layer.weight**2).sum() * inputs[0].var((0, 2, 3)).mean()
        found.append(float(10 * torch.log10(output.var((0, 2, 3)).sum() / noise)))

    for layer in loaded.module.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(measure)
    with torch.inference_mode():
        loaded.module(torch.from_numpy(inputs_from_source(built_in("test"), loaded.preprocess, 16)))
    return found[1:]


def test_random_filters_look_for_what_they_are_fed_as_much_as_trained_ones_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    random, trained = (sum(gains_db(load(weights, tmp_path))) / 20 for weights in ("random", "default"))
    assert trained == pytest.approx(5.8, abs=0.1)
    assert random == pytest.approx(trained, abs=1)
    monkeypatch.setattr("exporter.models.random_start.PATCH_SHARE", 0.0)
    assert sum(gains_db(load("random", tmp_path))) / 20 == pytest.approx(0, abs=0.3)


@pytest.mark.parametrize("model", ["resnet18", "resnet50", "resnext50_32x4d"])
def test_noise_does_not_grow_from_stage_to_stage_of_random_weights(tmp_path: Path, model: str) -> None:
    """White filters lose 8 dB between the first stage and the last."""
    loaded = with_features(load("random", tmp_path, model, features="stages", image_size=(64, 64)), "stages")
    exact = torch.from_numpy(inputs_from_source(built_in("test"), loaded.preprocess, 8))
    step = exact.abs().max() / 127
    with torch.inference_mode():
        pairs = zip(loaded.module(exact), loaded.module((exact / step).round() * step), strict=True)
        ratios = [sqnr_db(one.numpy(), other.numpy()) for one, other in pairs]
    assert min(ratios) > ratios[0] - 4


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(6, 8, 3, padding=1),
        nn.Conv2d(6, 8, (1, 5), stride=2, bias=False),
        nn.Conv2d(6, 9, 4, groups=3, padding="same"),
        nn.Conv2d(6, 6, 7, groups=6, padding=3),
        nn.Conv2d(6, 5, 1),
    ],
    ids=str,
)
def test_a_filter_takes_in_a_patch_and_keeps_its_norm(layer: nn.Conv2d) -> None:
    torch.manual_seed(0)
    inputs = torch.randn(4, 6, 5, 5).cumsum(3)
    before = layer.weight.detach().clone()
    with torch.inference_mode():
        _take_in_patches(layer, (inputs,))
    added = layer.weight.detach() - (1 - PATCH_SHARE) ** 0.5 * before
    norms = [torch.linalg.vector_norm(one, dim=(1, 2, 3)) for one in (added, before)]
    torch.testing.assert_close(norms[0], PATCH_SHARE**0.5 * norms[1])


def test_a_convolution_that_is_fed_nothing_but_one_value_or_a_single_image_stays_finite() -> None:
    layer = nn.Conv2d(2, 3, 3)
    before = layer.weight.detach().clone()
    with torch.inference_mode():
        _take_in_patches(layer, (torch.zeros(2, 5, 5),))
        assert torch.equal(layer.weight, before)
        _take_in_patches(layer, (torch.zeros(1, 2, 5, 5),))
    assert layer.weight.isfinite().all()


def test_the_shipped_weights_come_with_labels_and_preprocessing(tmp_path: Path) -> None:
    loaded = load("default", tmp_path)
    assert loaded.facts.weights.kind == "shipped"
    assert loaded.labels is not None
    assert loaded.labels[9] == "Ankle boot"
    assert loaded.preprocess.crop == (28, 28)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state, "optimizer": {}},
    ],
)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_state_dict_is_found_bare_or_wrapped_with_or_without_prefix(
    state: dict[str, Tensor], tmp_path: Path, wrap: Any, prefix: str
) -> None:
    path = saved(wrap({f"{prefix}{key}": value for key, value in state.items()}), tmp_path / "c.pth")
    loaded = load(path, tmp_path)
    assert loaded.facts.classes == 7
    assert loaded.facts.weights.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert all(torch.equal(value, state[key]) for key, value in loaded.module.state_dict().items())


def test_safetensors_fp16_and_missing_batch_counters_are_read(state: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    save_file({key: value.half() for key, value in state.items() if not key.endswith("num_batches_tracked")}, path)
    loaded = load(path, tmp_path)
    assert {value.dtype for value in loaded.module.state_dict().values()} == {torch.float32, torch.int64}
    assert not loaded.module.training


def test_input_channels_are_the_checkpoints_own(tmp_path: Path) -> None:
    path = saved(CifarResNet(3, 3, 10).state_dict(), tmp_path / "rgb.pt")
    assert load(path, tmp_path).preprocess.channels == 3
    assert load(path, tmp_path, mean=(0.5,), std=(0.1, 0.2, 0.3)).preprocess.mean == (0.5, 0.5, 0.5)
    with pytest.raises(PlanError, match="expected --mean with 1 or 3 values, got 2"):
        load(path, tmp_path, mean=(0.5, 0.5))


def test_labels_must_be_as_many_as_classes(state: dict[str, Tensor], tmp_path: Path) -> None:
    path, labels = saved(state, tmp_path / "c.pt"), tmp_path / "labels.txt"
    labels.write_text("\n".join("abcdefg") + "\n")
    assert load(path, tmp_path, labels=labels).labels == tuple("abcdefg")
    labels.write_text("a\nb\n")
    with pytest.raises(BadInput, match="expected 7 labels, one a line, got 2"):
        load(path, tmp_path, labels=labels)
    with pytest.raises(BadInput, match="--labels: there is no file or folder .*none.txt"):
        load(path, tmp_path, labels=tmp_path / "none.txt")


def test_a_checkpoint_of_another_architecture_is_refused_with_the_keys_that_differ(
    state: dict[str, Tensor], tmp_path: Path
) -> None:
    path = saved(state, tmp_path / "c.pt")
    with pytest.raises(BadInput, match=r"is a checkpoint of resnet20, not of resnet18; export resnet20$"):
        load(path, tmp_path, "resnet18")
    with pytest.raises(PlanError, match=r"--num-classes says 5, but .* has 7 classes"):
        load(path, tmp_path, classes=5)


class Evil:
    """Touches a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_wants_to_run_code_is_refused_and_not_run(tmp_path: Path, zipped: bool) -> None:
    trap, path = tmp_path / "owned", tmp_path / "evil.pth"
    if zipped:
        torch.save({"state_dict": Evil(trap)}, path)
    else:
        path.write_bytes(pickle.dumps({"state_dict": Evil(trap)}))
    with pytest.raises(BadInput, match="not a checkpoint of plain tensors"):
        load(path, tmp_path)
    assert not trap.exists()


def test_what_is_no_checkpoint_is_refused(state: dict[str, Tensor], tmp_path: Path) -> None:
    whole = saved(state, tmp_path / "whole.pt").read_bytes()
    cases = {
        "truncated.pt": whole[: len(whole) // 2],
        "empty.pt": b"",
        "junk.pt": b"\x00\x01 not a checkpoint at all",
        "empty.safetensors": b"",
        "junk.safetensors": os.urandom(64),
        "truncated.safetensors": (8).to_bytes(8, "little"),
    }
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BadInput, match=name):
            load(tmp_path / name, tmp_path)
    with pytest.raises(BadInput, match="got list without tensors"):
        load(saved([1, 2], tmp_path / "list.pt"), tmp_path)
    with pytest.raises(
        BadInput,
        match="does not look like a ResNet checkpoint: expected the tensors of a resnet20, got a; export .* package.module:factory",
    ):
        load(saved({"a": torch.zeros(1)}, tmp_path / "other.pt"), tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(
    state: dict[str, Tensor], tmp_path: Path, value: float
) -> None:
    broken = {**state, "layer2.0.bn1.bias": torch.full((32,), value)}
    with pytest.raises(BadInput, match=r"'layer2\.0\.bn1\.bias' holds NaN or infinite values"):
        load(saved(broken, tmp_path / "nan.pt"), tmp_path)


def test_default_weights_are_downloaded_with_all_that_the_weights_object_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """torchvision's own download, from a local file in place of its server."""
    from torchvision.models import ResNet18_Weights, resnet18

    served = saved(resnet18().state_dict(), tmp_path / "served.pth")
    digest = hashlib.sha256(served.read_bytes()).hexdigest()
    served = served.rename(tmp_path / f"resnet18-{digest[:8]}.pth")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    monkeypatch.setattr(ResNet18_Weights.DEFAULT.value, "url", served.as_uri())
    loaded = load("default", tmp_path, "resnet18")
    assert capsys.readouterr().out == ""  # which belongs to --json
    assert loaded.facts.weights.kind == "default"
    assert loaded.facts.weights.sha256 == digest
    assert loaded.labels is not None
    assert (len(loaded.labels), loaded.labels[0]) == (1000, "tench")
    assert (loaded.preprocess.resize, loaded.preprocess.crop) == (256, (224, 224))
    (cached,) = (tmp_path / "hub").rglob("*.pth")
    cached.write_bytes(cached.read_bytes()[:-1000])  # torch.hub takes what it has as it is
    assert load("default", tmp_path, "resnet18").facts.weights.sha256 == digest
    assert cached.read_bytes() == served.read_bytes()


def test_a_download_of_other_bytes_than_its_name_says_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision.models import ResNet18_Weights

    served = tmp_path / "resnet18-00000000.pth"
    served.write_bytes(b"something else")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    monkeypatch.setattr(ResNet18_Weights.DEFAULT.value, "url", served.as_uri())
    with pytest.raises(WeightsUnavailable, match=r"cannot fetch .*resnet18-00000000.pth \(invalid hash value"):
        load("default", tmp_path, "resnet18")
    assert not any((tmp_path / "hub/hub/checkpoints").iterdir())


def test_without_a_network_default_weights_fail_within_seconds_and_name_the_ways_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision.models import ResNet18_Weights

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    monkeypatch.setattr(ResNet18_Weights.DEFAULT.value, "url", "https://127.0.0.1:1/resnet18-00000000.pth")
    start = time.monotonic()
    with pytest.raises(
        WeightsUnavailable, match=r"cannot fetch https://127.0.0.1:1/.*--weights random.*--weights FILE"
    ):
        load("default", tmp_path, "resnet18")
    assert time.monotonic() - start < 15

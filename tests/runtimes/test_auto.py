"""`open_runtime(bundle, "auto")`: the fastest that was measured here, else the documented order; damage is said."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from made_results import STEADY, entry, facts, result, slowed

from runtimes import Bundle, open_runtime
from runtimes.benchmark import winners
from runtimes.benchmark.machine import this_machine
from runtimes.benchmark.results import Result, Settings
from runtimes.benchmark.winners import keep_rankings, kept_ranking, ranking_of
from runtimes.choice import candidates
from runtimes.errors import BackendUnavailable, BadInput
from runtimes.tuning import DEFAULT_TUNING

SETTINGS = Settings(10, 0.25, DEFAULT_TUNING.cores, None, "")
"""Measured with as many threads as are used by default."""


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state"


@pytest.fixture
def bundle(good: Any) -> Bundle:
    found: Bundle = good[1].bundle
    return found


@pytest.fixture
def keep(bundle: Bundle, state: Path) -> Callable[..., Result]:
    """Keep a result of this bundle on this machine."""
    sha256 = hashlib.sha256((bundle.folder / "manifest.json").read_bytes()).hexdigest()

    def kept(*entries: Any) -> Result:
        made = result(*entries, bundles=[facts(sha256=sha256)], machine=this_machine(), settings=SETTINGS)
        assert keep_rankings(made) == ""
        return made

    return kept


def test_nothing_measured_gives_the_documented_order_and_says_what_was_skipped(bundle: Bundle, state: Path) -> None:
    with open_runtime(bundle, "auto") as runtime:
        assert runtime.choice is not None
        assert "nothing was measured here" in runtime.choice.why
        assert any(said.startswith("tensorrt") for said in runtime.choice.skipped)
        assert runtime.provider == runtime.choice.provider
    assert not state.exists()
    with open_runtime(bundle) as named:
        assert named.choice is None


def test_the_measured_winner_is_opened(bundle: Bundle, keep: Callable[..., Result]) -> None:
    keep(entry("onnxruntime", slowed(STEADY, 2)), entry("pytorch"))
    with open_runtime(bundle, "auto") as runtime:
        assert runtime.choice is not None
        assert str(runtime.choice) == "pytorch (cpu): the first in latency of those measured here on 2026-11-27"
    keep(entry("onnxruntime"), entry("pytorch", slowed(STEADY, 2)))
    with open_runtime(str(bundle.folder), "auto") as runtime:
        assert runtime.choice is not None
        assert runtime.choice.backend == "onnxruntime"


def test_of_those_that_rounds_cannot_tell_apart_the_documented_order_decides() -> None:
    turns = (1.1, 0.9) * 5
    noisy = [rate * turn for rate, turn in zip(STEADY, turns, strict=True)]
    found = result(entry("pytorch", noisy), entry("onnxruntime"), entry("openvino", slowed(STEADY, 3)))
    ranking = ranking_of(found, found.bundles[0])
    assert ranking is not None
    assert ranking.latency == (("onnxruntime", "cpu"), ("pytorch", "cpu"), ("openvino", "cpu"))


def test_variants_that_open_runtime_does_not_know_and_wrong_answers_are_not_ranked() -> None:
    found = result(
        entry("pytorch", slowed(STEADY, 0.2), variant="compile"),
        entry("onnxruntime", slowed(STEADY, 0.5), right=False),
        entry("openvino", slowed(STEADY, 0.6), variant="throughput"),
        entry("pytorch"),
    )
    ranking = ranking_of(found, found.bundles[0])
    assert ranking is not None
    assert ranking.throughput == (("openvino", "cpu"), ("pytorch", "cpu"))
    nothing = result(entry("onnxruntime", right=False))
    assert ranking_of(nothing, nothing.bundles[0]) is None


def test_a_backend_that_was_measured_alone_takes_nobodys_place(bundle: Bundle, keep: Callable[..., Result]) -> None:
    keep(entry("pytorch", slowed(STEADY, 2)), entry("onnxruntime"))
    keep(entry("pytorch"))
    with open_runtime(bundle, "auto") as runtime:
        assert runtime.choice is not None
        assert runtime.choice.backend == "onnxruntime"


def test_a_ranking_is_of_one_bundle_on_one_machine_with_as_many_threads(
    bundle: Bundle, keep: Callable[..., Result]
) -> None:
    found = keep(entry("pytorch"), entry("onnxruntime"))
    sha256, key, threads = found.bundles[0].sha256, found.machine.key, found.settings.threads
    assert kept_ranking(sha256, key, threads)[0] is not None
    assert kept_ranking("b" * 64, key, threads) == (None, "")
    assert kept_ranking(sha256, "b" * 64, threads) == (None, "")
    assert kept_ranking(sha256, key, threads + 1) == (None, ""), "the fastest on many threads need not be so on one"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00\xff",
        b"[]",
        b"[" * 100_000,
        b'{"schema_version": 1, "date": "x", "latency": [["pytorch", 3]], "throughput": []}',
        b'{"schema_version": 2, "date": "x", "latency": [], "throughput": []}',
        None,
    ],
    ids=["empty", "no text", "a list", "deep", "a wrong type", "another version", "a folder"],
)
def test_a_damaged_file_is_ignored_and_said(
    bundle: Bundle, keep: Callable[..., Result], state: Path, data: bytes | None
) -> None:
    keep(entry("pytorch"), entry("onnxruntime"))
    (path,) = (state / "resnet-export" / "bench").iterdir()
    path.unlink()
    path.mkdir() if data is None else path.write_bytes(data)
    with open_runtime(bundle, "auto") as runtime:
        assert runtime.choice is not None
        assert "what was measured is not used, since" in runtime.choice.why
        assert str(path) in runtime.choice.why
        assert "measure again" in runtime.choice.why


def test_a_name_that_is_no_backend_is_skipped_with_its_reason(bundle: Bundle, keep: Callable[..., Result]) -> None:
    keep(entry("../evil"), entry("onnxruntime", slowed(STEADY, 2)))
    with open_runtime(bundle, "auto") as runtime:
        assert runtime.choice is not None
        assert runtime.choice.skipped[0].startswith("../evil: unknown backend '../evil'")


def test_what_cannot_be_kept_is_said(state: Path) -> None:
    state.write_text("a file")
    assert "cannot make the folder" in keep_rankings(result(entry("pytorch"), entry("onnxruntime")))


def test_a_provider_keeps_only_backends_that_may_have_it(bundle: Bundle, state: Path) -> None:
    named = [(one.backend, one.provider) for one in candidates(bundle, DEFAULT_TUNING, "cuda")]
    assert ("onnxruntime", "cuda") in named
    assert ("onnxruntime", "cpu") not in named
    with open_runtime(bundle, "auto", provider="cpu") as runtime:
        assert runtime.provider == "cpu"


def test_none_that_can_run_it_gives_every_reason(bundle: Bundle, state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtimes.choice.ORDER", (("tensorrt-rtx", None), ("onnxruntime", "cuda")))
    with pytest.raises(BackendUnavailable, match="no backend can run .* here: tensorrt-rtx: .*; onnxruntime: "):
        open_runtime(bundle, "auto")


@pytest.mark.parametrize(
    ("board", "remedy"),
    [(None, "pip install 'resnet-export[export]' for the CPU"), ("a Jetson", "on a Jetson use JetPack's own")],
)
def test_none_that_is_installed_names_each_once_and_the_remedy_of_this_machine(
    bundle: Bundle, state: Path, monkeypatch: pytest.MonkeyPatch, board: str | None, remedy: str
) -> None:
    def absent(name: str) -> None:
        raise BackendUnavailable(f"{name} is missing") from ImportError(name)

    monkeypatch.setattr("runtimes._open.backend_class", absent)
    monkeypatch.setattr("runtimes._open.this_board", lambda: board)
    with pytest.raises(BackendUnavailable) as caught:
        open_runtime(bundle, "auto")
    assert f"not installed: tensorrt, tensorrt-rtx, onnxruntime, openvino, pytorch; {remedy}" in str(caught.value)


def test_auto_takes_a_bundle_alone(tiny_model: Path, state: Path) -> None:
    with pytest.raises(BadInput, match="expected a bundle for the backend auto, got the file"):
        open_runtime(tiny_model / "model.onnx", "auto")


def test_the_documented_order_names_every_backend() -> None:
    from runtimes._open import local_backend_names

    documented = open_runtime.__doc__ or ""
    assert set(local_backend_names()) <= {backend for backend, _ in winners.ORDER}
    places = [
        documented.index(name) for name in ("tensorrt,", "tensorrt-rtx", "cuda, openvino", "the cpu, and pytorch")
    ]
    assert places == sorted(places)


def test_a_backend_that_does_not_take_the_graph_is_skipped_too(
    bundle: Bundle, keep: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(entry("pytorch"), entry("onnxruntime", slowed(STEADY, 2)))

    def refuse(*arguments: object, **options: object) -> None:
        raise BadInput("this library has no such operator")

    monkeypatch.setattr("runtimes.backends.pytorch.PyTorchRuntime.open", refuse)
    with open_runtime(bundle, "auto") as runtime:
        assert runtime.choice is not None
        assert (runtime.choice.backend, runtime.choice.skipped) == (
            "onnxruntime",
            ("pytorch: this library has no such operator",),
        )

"""What every backend promises. One that lies in `runtimes/backends` is tested; one that cannot run here is skipped."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from backend_fixtures import Backend, backend_fixture, one_thread_fixture, opened_or_skipped  # noqa: F401  # pytest finds the fixtures by their names
from numpy.typing import NDArray
from tiny_answers import INPUT, OUTPUT, assert_same_rows, images

from runtimes import Runtime, backend_names
from runtimes.backends.onnxruntime import OnnxRuntime
from runtimes.errors import BackendUnavailable, BadInput
from runtimes.specs import BatchRange, TensorSpec


@pytest.fixture(scope="module")
def runtime(backend: Backend) -> Iterator[Runtime]:
    """Opened once, with no batch range of its own; no test may close it."""
    with backend.open() as opened:
        yield opened


@pytest.fixture(scope="module")
def ranged(backend: Backend) -> Iterator[Runtime]:
    """Opened once, for two to four rows; no test may close it."""
    with backend.open(BatchRange(2, 3, 4)) as opened:
        yield opened


def one_by_one(runtime: Runtime, inputs: NDArray[Any]) -> NDArray[Any]:
    return np.concatenate([runtime.run({INPUT: row[None]})[OUTPUT] for row in inputs])


# --- opened means usable ---


def test_inputs_and_outputs_are_told_with_names_dtypes_and_shapes(runtime: Runtime) -> None:
    assert runtime.inputs == (TensorSpec(INPUT, "float32", ("batch", 1, 28, 28)),)
    assert runtime.outputs == (TensorSpec(OUTPUT, "float32", ("batch", 10)),)


def test_the_provider_that_runs_is_told(runtime: Runtime, backend: Backend) -> None:
    assert runtime.provider == (backend.provider or "cpu")  # engines, which are on a GPU alone, are tested elsewhere


def test_the_outputs_are_the_networks(runtime: Runtime, tiny_model: Path) -> None:
    with torch.no_grad():
        expected = torch.export.load(tiny_model / "reference.pt2").module()(torch.from_numpy(images(5))).numpy()
    assert_same_rows(runtime.run({INPUT: images(5)})[OUTPUT], expected)


@pytest.mark.parametrize("count", [1, 2, 7])
def test_outputs_are_what_the_specification_says_at_any_batch(runtime: Runtime, count: int) -> None:
    outputs = runtime.run({INPUT: images(count)})
    assert list(outputs) == [OUTPUT]
    assert outputs[OUTPUT].shape == (count, 10)
    assert outputs[OUTPUT].dtype.name == runtime.outputs[0].dtype


def test_equal_inputs_give_equal_outputs(runtime: Runtime) -> None:
    first, second = (runtime.run({INPUT: images(4)})[OUTPUT] for _ in range(2))
    np.testing.assert_array_equal(first, second)


# --- threads ---


def test_one_thread_computes_where_one_is_asked_for(backend: Backend) -> None:
    fed = {INPUT: images(200)}
    with backend.open() as runtime:  # for one thread
        assert runtime.run(fed)[OUTPUT].shape == (200, 10)
        start, computed = time.perf_counter(), time.process_time()
        for _ in range(10):
            runtime.run(fed)
        computed, elapsed = time.process_time() - computed, time.perf_counter() - start
    assert computed <= 1.1 * elapsed  # two would compute for up to twice the time that passes


# --- outputs belong to the caller, inputs stay the caller's ---


@pytest.mark.parametrize("count", [3, 6, 1], ids=["inside the range", "split", "padded"])
def test_outputs_survive_the_next_run_and_may_be_written_to(ranged: Runtime, count: int) -> None:
    first = ranged.run({INPUT: images(count)})[OUTPUT]
    kept = first.copy()
    ranged.run({INPUT: images(count) + 1})
    np.testing.assert_array_equal(first, kept)
    assert first.flags.writeable
    first[...] = -1
    np.testing.assert_array_equal(ranged.run({INPUT: images(count)})[OUTPUT], kept)
    assert (first == -1).all()


def test_inputs_are_left_as_they_were(runtime: Runtime) -> None:
    first, second = images(3), images(3) * 2
    for fed in (first, second, first):
        runtime.run({INPUT: fed})
    np.testing.assert_array_equal(first, images(3))
    np.testing.assert_array_equal(second, images(3) * 2)


def strided(values: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """The same values, laid out in memory in ways that a backend which reads raw memory would get wrong."""
    every_other = np.zeros((len(values) * 2, *values.shape[1:]), values.dtype)
    every_other[::2] = values
    frozen = values.copy()
    frozen.flags.writeable = False
    return {
        "backwards": np.ascontiguousarray(values[:, :, ::-1])[:, :, ::-1],
        "columns first": np.asfortranarray(values),
        "every other row": every_other[::2],
        "transposed": np.ascontiguousarray(values.transpose(0, 1, 3, 2)).transpose(0, 1, 3, 2),
        "read-only": frozen,
        "a repeated row": np.broadcast_to(values[:1], values.shape),
        "not aligned": np.frombuffer(b"\x00" + values.tobytes(), values.dtype, offset=1).reshape(values.shape),
        "the other byte order": values.astype(values.dtype.newbyteorder("S")),
    }


@pytest.mark.parametrize("layout", strided(images(1)))
def test_any_layout_of_memory_gives_the_values_it_holds(runtime: Runtime, layout: str) -> None:
    fed = strided(images(3))[layout]
    assert not (fed.flags.c_contiguous and fed.flags.writeable and fed.flags.aligned and fed.dtype.isnative)
    expected = runtime.run({INPUT: np.array(fed, np.float32, order="C")})[OUTPUT]
    np.testing.assert_array_equal(runtime.run({INPUT: fed})[OUTPUT], expected)


class OtherLibrarysArray:
    """What numpy takes for an array though it is none of its own, as those of JAX are."""

    def __init__(self, values: NDArray[Any]) -> None:
        self.values, self.dtype, self.shape, self.ndim = values, values.dtype, values.shape, values.ndim

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return self.values.astype(dtype or self.dtype)


def test_an_array_of_another_library_is_taken_as_numpy_takes_it(runtime: Runtime) -> None:
    expected = runtime.run({INPUT: images(3)})[OUTPUT]
    found = runtime.run({INPUT: OtherLibrarysArray(images(3))})  # type: ignore[dict-item]
    np.testing.assert_array_equal(found[OUTPUT], expected)


# --- what is fed is checked ---


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({}, r"expected inputs \['input'\], got \[\]"),
        ({"image": images(2)}, r"expected inputs \['input'\], got \['image'\]"),
        ({INPUT: images(2), "mask": images(2)}, r"expected inputs \['input'\], got \['input', 'mask'\]"),
        ({INPUT: images(2).astype(np.float64)}, "expected float32, got float64"),
        ({INPUT: images(2).astype(np.float16)}, "expected float32, got float16"),
        ({INPUT: images(2).astype(np.uint8)}, "expected float32, got uint8"),
        ({INPUT: images(2)[0]}, "expected shape batchx1x28x28, got 1x28x28"),
        ({INPUT: images(2).repeat(3, axis=1)}, "expected shape batchx1x28x28, got 2x3x28x28"),
        ({INPUT: images(2)[..., :27]}, "expected shape batchx1x28x28, got 2x1x28x27"),
        ({INPUT: images(2)[:0]}, "expected shape batchx1x28x28, got 0x1x28x28"),
        ({INPUT: np.float32(1).reshape(())}, "expected shape batchx1x28x28, got a scalar"),
        ({1: images(2)}, r"expected inputs \['input'\], got \['1'\]"),
        ({INPUT: images(2).tolist()}, "expected a numpy array, got list; convert it with numpy.asarray"),
        ({INPUT: None}, "expected a numpy array, got NoneType"),
        ({INPUT: torch.zeros(2, 1, 28, 28)}, "expected a numpy array, got Tensor"),
        ({INPUT: images(2).astype(object)}, "expected float32, got object"),
        (images(2), r"expected inputs \['input'\] as arrays by name, got ndarray; feed a dict"),
        (None, r"expected inputs \['input'\] as arrays by name, got NoneType"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_wrong_names_dtypes_and_shapes_are_refused_and_the_runtime_lives_on(
    runtime: Runtime, feeds: dict[str, NDArray[Any]], message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        runtime.run(feeds)
    assert runtime.run({INPUT: images(2)})[OUTPUT].shape == (2, 10)


# --- the batch range ---


@pytest.mark.parametrize(
    ("count", "sizes"),
    [(1, [2]), (2, [2]), (3, [3]), (4, [4]), (5, [4, 2]), (8, [4, 4]), (9, [4, 4, 2]), (11, [4, 4, 3])],
)
def test_a_batch_above_the_range_is_split_and_one_below_it_padded(
    runtime: Runtime, ranged: Runtime, count: int, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    inner = ranged._run

    def watched(feeds: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        seen.append(len(feeds[INPUT]))
        return inner(feeds)

    monkeypatch.setattr(ranged, "_run", watched)
    got = ranged.run({INPUT: images(count)})[OUTPUT]
    assert seen == sizes
    assert got.shape == (count, 10)
    assert_same_rows(got, one_by_one(runtime, images(count)))


def test_a_graph_of_a_fixed_batch_takes_any_number_of_rows(tiny_model: Path, tmp_path: Path) -> None:
    model = onnx.load(tiny_model / "model.onnx")
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 4
    onnx.save(model, tmp_path / "model.onnx")
    with OnnxRuntime.open(tmp_path / "model.onnx") as fixed, OnnxRuntime.open(tiny_model / "model.onnx") as free:
        assert fixed.inputs[0].shape == (4, 1, 28, 28)
        assert fixed.batch == BatchRange(4, 4, 4)
        with pytest.raises(BadInput, match="expected shape batchx1x28x28, got 4x1x28x27"):
            fixed.run({INPUT: images(4)[..., :27]})
        np.testing.assert_array_equal(fixed.run({INPUT: images(4)})[OUTPUT], free.run({INPUT: images(4)})[OUTPUT])
        for count in (1, 3, 5, 9):
            assert_same_rows(fixed.run({INPUT: images(count)})[OUTPUT], one_by_one(free, images(count)))


# --- closed means gone ---


def test_a_closed_runtime_does_not_run_and_closing_twice_is_harmless(backend: Backend) -> None:
    runtime = backend.open()
    before = runtime.run({INPUT: images(2)})[OUTPUT]
    kept = before.copy()
    runtime.close()
    runtime.close()
    with pytest.raises(ValueError, match="the runtime is closed; open it again"):
        runtime.run({INPUT: images(2)})
    np.testing.assert_array_equal(before, kept)  # outputs outlive the runtime


def test_leaving_the_block_closes_also_when_it_fails(backend: Backend) -> None:
    runtime = backend.open()

    def fail_inside() -> None:
        with runtime as entered:
            assert entered is runtime
            raise KeyError("the caller's own")

    with pytest.raises(KeyError, match="the caller's own"):
        fail_inside()
    with pytest.raises(ValueError, match="the runtime is closed"):
        runtime.run({INPUT: images(1)})


def test_closing_one_runtime_leaves_another_of_the_same_file_alone(backend: Backend, runtime: Runtime) -> None:
    expected = runtime.run({INPUT: images(2)})[OUTPUT]
    backend.open().close()
    np.testing.assert_array_equal(runtime.run({INPUT: images(2)})[OUTPUT], expected)


def test_a_file_whose_name_is_no_text_opens(backend: Backend, tmp_path: Path) -> None:
    backend.need_file()
    path = tmp_path / os.fsdecode(b"b\xe9") / backend.path.name
    path.parent.mkdir()
    shutil.copy(backend.path, path)
    with backend.kind.open(path, provider=backend.provider) as runtime:
        assert runtime.run({INPUT: images(2)})[OUTPUT].shape == (2, 10)


# --- one process ---


def test_a_fork_of_the_process_that_opened_a_runtime_is_told_to_open_its_own(backend: Backend) -> None:
    with backend.open() as runtime:
        runtime.run({INPUT: images(1)})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # from Python 3.12 on: a process with threads forks
            child = os.fork()
        if child == 0:
            try:
                runtime.run({INPUT: images(1)})
            except BackendUnavailable as error:
                runtime.close()
                os._exit(0 if "open it after the fork" in str(error) else 1)
            finally:
                os._exit(2)
        deadline = time.monotonic() + 30
        while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < deadline:
            time.sleep(0.01)
        if ended == (0, 0):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        assert ended == (child, 0)
        assert runtime.run({INPUT: images(1)})[OUTPUT].shape == (1, 10)  # the one that opened it goes on


def test_a_fork_that_ends_by_an_error_ends(backend: Backend) -> None:
    code = (
        "import os, signal, sys, warnings; warnings.simplefilter('ignore')\n"
        "import numpy; from runtimes import open_runtime\n"
        "model = open_runtime(sys.argv[1], sys.argv[2])\n"
        "signal.alarm(60 if os.fork() else 20)\n"
        "model.run({'input': numpy.zeros((1, 1, 28, 28), numpy.float32)})\n"
        "sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, backend.given, backend.name], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stderr
    assert "open it after the fork" in done.stderr


# --- what cannot be opened ---


@pytest.mark.parametrize("name", backend_names())
def test_an_unknown_provider_is_refused_by_name(name: str, tiny_model: Path) -> None:
    backend = opened_or_skipped(name, None, tiny_model)
    with pytest.raises(BackendUnavailable, match="'abacus'") as caught:
        backend.kind.open(backend.path, provider="abacus")
    assert caught.value.exit_code == 3


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here; the contract runs on it")
@pytest.mark.parametrize("name", backend_names())
def test_without_a_gpu_asking_for_one_is_refused_and_never_answered_by_the_cpu(name: str, tiny_model: Path) -> None:
    backend = opened_or_skipped(name, None, tiny_model)
    with pytest.raises(BackendUnavailable, match=r"(?i)cuda"):
        backend.kind.open(backend.path, provider="cuda")


@pytest.mark.parametrize("name", backend_names())
@pytest.mark.parametrize(
    "content",
    [b"", b"junk" * 100, b"PK\x03\x04" + b"\x00" * 50, b"{}"],
    ids=["empty", "junk", "half an archive", "json"],
)
def test_a_file_that_is_no_model_is_named_in_one_line(
    name: str, content: bytes, tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    backend = opened_or_skipped(name, None, tiny_model)
    path = tmp_path / backend.kind.FILE
    path.write_bytes(content)
    capfd.readouterr()
    with pytest.raises(BadInput, match=re.escape(str(path))) as caught:
        backend.kind.open(path)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")  # no library's own traceback


@pytest.mark.parametrize("name", backend_names())
def test_a_model_cut_short_is_named(name: str, tiny_model: Path, tmp_path: Path) -> None:
    backend = opened_or_skipped(name, None, tiny_model)
    path = tmp_path / backend.kind.FILE
    path.write_bytes(backend.path.read_bytes()[:-1000])
    with pytest.raises(BadInput, match=re.escape(str(path))):
        backend.kind.open(path)


@pytest.mark.parametrize("name", backend_names())
def test_another_backends_file_is_named(name: str, tiny_model: Path) -> None:
    backend = opened_or_skipped(name, None, tiny_model)
    other = next(path for path in sorted(tiny_model.iterdir()) if path.name != backend.kind.FILE)
    with pytest.raises(BadInput, match=re.escape(str(other))):
        backend.kind.open(other)

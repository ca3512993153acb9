"""`Runtime.stream`: pictures in, outputs out, in order, in bounded memory; on every backend that can run here."""

from __future__ import annotations

import io
import itertools
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from any_size import bundles_fixture, noise  # noqa: F401  # pytest finds it by its name
from backend_fixtures import Backend, backend_fixture, one_thread_fixture  # noqa: F401  # as above
from conftest import Made
from numpy.typing import NDArray
from PIL import Image
from tiny_answers import INPUT, OUTPUT, assert_same_rows

from runtimes import Runtime, open_runtime, picture_file
from runtimes.ahead import map_ahead
from runtimes.backends.onnxruntime import OnnxRuntime
from runtimes.errors import BadInput
from runtimes.preprocess import Preprocess
from runtimes.specs import BatchRange
from runtimes.tuning import Tuning

STEPS = Preprocess(28, (28, 28), "bilinear", True, (0.286,), (0.353,))


def pictures(count: int) -> list[Image.Image]:
    return [noise(40 + place, 50, 1) for place in range(count)]


def threads_left() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("ahead")]


@pytest.fixture
def tiny(tiny_model: Path) -> Iterator[Runtime]:
    """The model's file alone on ONNX Runtime, for batches of at most four."""
    with OnnxRuntime.open(tiny_model / "model.onnx", batch=BatchRange(1, 4, 4), tuning=Tuning(1)) as runtime:
        yield runtime
    assert threads_left() == []


# --- what comes out ---


def test_outputs_come_in_the_order_of_the_pictures_batch_by_batch(backend: Backend) -> None:
    given = pictures(11)
    with backend.open(BatchRange(2, 3, 4)) as runtime:
        found = [outputs[OUTPUT] for outputs in runtime.stream(given, STEPS)]
        assert [len(rows) for rows in found] == [3, 3, 3, 2]
        assert_same_rows(np.concatenate(found), runtime.run({INPUT: STEPS.batch(given)})[OUTPUT])
        kept = [rows.copy() for rows in found]
        assert [len(one[OUTPUT]) for one in runtime.stream(given, STEPS, batch=9)] == [9, 2]  # one is split, one padded
        for rows, before in zip(found, kept, strict=True):
            np.testing.assert_array_equal(rows, before)
    assert threads_left() == []


def test_a_picture_may_be_a_path_one_that_pillow_opened_or_pixels(tiny: Runtime, tmp_path: Path) -> None:
    image = noise(30, 40, 1)
    image.save(tmp_path / "one.png")
    np.save(tmp_path / "one.npy", np.asarray(image))
    given: list[Any] = [
        tmp_path / "one.png",
        str(tmp_path / "one.png"),
        tmp_path / "one.npy",
        Image.open(io.BytesIO((tmp_path / "one.png").read_bytes())),
        image,
        np.asarray(image),
        np.asarray(image)[..., None],
    ]
    (rows,) = [outputs[OUTPUT] for outputs in tiny.stream(given, STEPS, batch=len(given))]
    assert len(rows) == len(given)
    for row in rows:
        np.testing.assert_array_equal(row, rows[0])


def test_no_pictures_give_no_outputs(tiny: Runtime) -> None:
    assert list(tiny.stream([], STEPS)) == []


def test_a_bundle_knows_its_preprocessing_and_a_single_file_does_not(good: Made, tiny: Runtime) -> None:
    given = pictures(5)
    with open_runtime(good[1].bundle) as runtime:
        assert runtime.preprocess == good[1].bundle.manifest.preprocess
        (first, second) = (outputs[OUTPUT] for outputs in runtime.stream(given))
        np.testing.assert_array_equal(first, runtime.run({INPUT: runtime.preprocess.batch(given[:4])})[OUTPUT])
        assert len(second) == 1
    with pytest.raises(BadInput, match="got a single file; open the bundle, or give preprocess"):
        tiny.stream(given)


def test_of_pictures_of_any_size_neighbours_of_equal_size_share_a_batch(bundles: Any) -> None:
    given = [noise(height, 40, 1) for height in (50, 50, 50, 30, 30, 50, 60)]
    with open_runtime(bundles("fp32")) as runtime:
        alone = [outputs[OUTPUT] for outputs in runtime.stream(given)]
        together = [outputs[OUTPUT] for outputs in runtime.stream(given, batch=2)]
    assert [len(rows) for rows in alone] == [1] * 7
    assert [len(rows) for rows in together] == [2, 1, 2, 1, 1]
    np.testing.assert_allclose(np.concatenate(together), np.concatenate(alone), rtol=1e-4, atol=1e-4)


def test_a_model_with_its_normalisation_inside_is_fed_pixels(shipped_bundle: Any) -> None:
    given = pictures(3)
    with open_runtime(shipped_bundle("fp32", uint8="crop")) as runtime:
        steps = runtime.preprocess
        assert steps is not None
        (rows,) = [outputs[OUTPUT] for outputs in runtime.stream(given, batch=3)]
        pixels = np.stack([steps.pixels(one) for one in given])
        np.testing.assert_array_equal(rows, runtime.run({INPUT: pixels})[OUTPUT])


# --- what cannot be read ---


def bad_path(folder: Path) -> Path:
    (folder / "bad.png").write_bytes(b"junk")
    return folder / "bad.png"


def raising(given: list[Any]) -> Iterator[Any]:
    yield from given
    raise BadInput("the camera is gone")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("path", "cannot read the picture .*bad.png"),
        ("missing", "cannot read the picture .*none.png"),
        ("opened", "cannot read picture 6: image file is truncated"),
        ("channels", r"picture 6: expected pictures of grey or colour.* got 5 channels"),
        ("channels of a file", r"five.npy: expected pictures of grey or colour.* got 5 channels"),
        ("floats", r"picture 6: expected a path, .* got float32 \(9, 9\)"),
        ("number", "picture 6: expected a path, .* got int"),
        ("source", "the camera is gone"),
    ],
)
def test_an_unreadable_picture_is_named_in_its_place_after_the_outputs_before_it(
    tiny: Runtime, tmp_path: Path, kind: str, message: str
) -> None:
    whole = io.BytesIO()
    noise(90, 90).save(whole, "BMP")
    np.save(tmp_path / "five.npy", np.zeros((9, 9, 5), np.uint8))
    bad: dict[str, Any] = {
        "path": bad_path(tmp_path),
        "missing": tmp_path / "none.png",
        "opened": Image.open(io.BytesIO(whole.getvalue()[:1000])),
        "channels": np.zeros((9, 9, 5), np.uint8),
        "channels of a file": tmp_path / "five.npy",
        "floats": np.zeros((9, 9), np.float32),
        "number": 7,
    }
    given = pictures(6)
    stream = tiny.stream(raising(given) if kind == "source" else [*given, bad[kind], *pictures(9)], STEPS)
    found = [next(stream)[OUTPUT], next(stream)[OUTPUT]]
    assert [len(rows) for rows in found] == [4, 2]
    np.testing.assert_array_equal(found[0], tiny.run({INPUT: STEPS.batch(given[:4])})[OUTPUT])
    with pytest.raises(BadInput, match=message):
        next(stream)
    assert threads_left() == []
    with pytest.raises(StopIteration):
        next(stream)


@pytest.mark.parametrize("batch", [0, -1, True, 1.0, "2"])
def test_a_batch_that_is_no_number_of_pictures_is_refused(tiny: Runtime, batch: Any) -> None:
    with pytest.raises(BadInput, match="expected a batch of at least 1 picture, got"):
        tiny.stream(pictures(1), STEPS, batch=batch)


def test_preprocessing_for_another_model_is_refused(tiny: Runtime) -> None:
    with pytest.raises(BadInput, match="expected shape batchx1x28x28, got 2x1x14x14"):
        next(tiny.stream(pictures(2), Preprocess(14, (14, 14), "bilinear", True, (0.5,), (0.5,))))
    assert threads_left() == []


def test_every_backend_refuses_preprocessing_for_another_model(backend: Backend) -> None:
    with (
        backend.open(BatchRange(1, 2, 4)) as runtime,
        pytest.raises(BadInput, match="expected shape batchx1x28x28, got 2x1x14x14"),
    ):
        next(runtime.stream(pictures(2), Preprocess(14, (14, 14), "bilinear", True, (0.5,), (0.5,))))


# --- in threads, in bounded memory, with an end ---


def test_in_a_fork_in_the_middle_of_a_stream_closing_ends(backend: Backend) -> None:
    code = (
        "import os, signal, sys, warnings; warnings.simplefilter('ignore')\n"
        "import numpy; from runtimes import Preprocess, open_runtime\n"
        "model = open_runtime(sys.argv[1], sys.argv[2])\n"
        "steps = Preprocess(28, (28, 28), 'bilinear', True, (0.5,), (0.5,))\n"
        "stream = model.stream((numpy.zeros((28, 28), numpy.uint8) for _ in iter(int, 1)), steps, batch=2)\n"
        "next(stream)\n"
        "child = os.fork()\n"
        "signal.alarm(60 if child else 20)\n"
        "if child == 0:\n"
        "    model.close(); del stream, model; os._exit(0)\n"
        "code = os.waitstatus_to_exitcode(os.wait()[1])\n"
        "stream.close(); model.close(); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, backend.given, backend.name], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


class Counted:
    """Pictures without end, and how many have been taken."""

    def __init__(self) -> None:
        self.taken = 0

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        for _ in itertools.count():
            self.taken += 1
            yield np.zeros((28, 28), np.uint8)


def test_pictures_without_end_are_read_a_few_ahead(tiny: Runtime) -> None:
    given = Counted()
    stream = tiny.stream(given, STEPS, batch=4)
    for round_ in range(1, 6):
        next(stream)
        assert 4 * round_ < given.taken <= 4 * round_ + 2 * 4 + tiny.tuning.cores
    stream.close()


def test_pictures_are_read_and_prepared_in_threads_while_the_model_runs(
    tiny: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first run and the reading of the third picture each wait until the other has begun."""
    noise(30, 30, 1).save(tmp_path / "one.png")
    readers: list[str] = []
    third_is_read, first_runs = threading.Event(), threading.Event()
    read, run = picture_file.open_image, tiny._run

    def watched_read(path: Path) -> Image.Image:
        readers.append(threading.current_thread().name)
        if len(readers) == 3:
            third_is_read.set()
            assert first_runs.wait(20)
        return read(path)

    def watched_run(feeds: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        first_runs.set()
        assert third_is_read.wait(20)
        return run(feeds)

    monkeypatch.setattr(picture_file, "open_image", watched_read)
    monkeypatch.setattr(tiny, "_run", watched_run)
    assert sum(len(one[OUTPUT]) for one in tiny.stream([tmp_path / "one.png"] * 12, STEPS, batch=2)) == 12
    assert {name.rpartition("_")[0] for name in readers} == {"ahead"}


@pytest.mark.parametrize("end", ["closed", "dropped", "broken off"])
def test_a_stream_that_is_not_read_to_its_end_leaves_no_thread(tiny: Runtime, end: str) -> None:
    stream = tiny.stream(Counted(), STEPS)
    if end == "broken off":
        for _ in stream:
            break
    else:
        next(stream)
    assert threads_left()
    if end == "closed":
        stream.close()
        stream.close()
        assert list(stream) == []
    del stream
    assert threads_left() == []


def test_closing_the_runtime_ends_its_streams(tiny_model: Path) -> None:
    with OnnxRuntime.open(tiny_model / "model.onnx", tuning=Tuning(1)) as runtime:
        begun, fresh = runtime.stream(Counted(), STEPS), runtime.stream(Counted(), STEPS)
        next(begun)
    assert threads_left() == []
    for stream in (begun, fresh):
        with pytest.raises(ValueError, match="the runtime is closed; open it again"):
            next(stream)
    with pytest.raises(ValueError, match="the runtime is closed; open it again"):
        runtime.stream([], STEPS)


def test_an_error_of_the_model_ends_the_stream_and_its_threads(tiny: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(_: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        raise RuntimeError("the device is lost")

    monkeypatch.setattr(tiny, "_run", failing)
    with pytest.raises(RuntimeError, match="the device is lost"):
        next(tiny.stream(Counted(), STEPS))
    assert threads_left() == []


# --- the work ahead ---


def test_work_ahead_keeps_to_its_order_whatever_takes_longest() -> None:
    def slow_first(place: int) -> int:
        time.sleep(0.05 if place == 0 else 0)
        return place * 10

    assert list(map_ahead(slow_first, range(9), ahead=4, threads=3)) == [place * 10 for place in range(9)]


def test_at_most_so_many_results_wait() -> None:
    begun: list[int] = []
    found = map_ahead(begun.append, range(100), ahead=5, threads=2)
    next(found)
    time.sleep(0.05)
    assert 1 <= len(begun) <= 5
    found.close()
    assert len(begun) <= 5

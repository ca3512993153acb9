"""IDX files, the layout of MNIST: read as they are, refused by name when they are not."""

from __future__ import annotations

import gzip
import os
import re
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from data_sets import idx_from_array
from numpy.typing import NDArray

from calibration.idx import read_idx
from runtimes.errors import BadInput

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 4, 3), np.uint8)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "train-images-idx3-ubyte"


@pytest.mark.parametrize(
    "array",
    [IMAGES, IMAGES[:, 0, 0], IMAGES[0], IMAGES[:0], IMAGES.reshape(1, 1, 5, 4, 3)],
    ids=lambda array: f"{array.shape}",
)
@pytest.mark.parametrize("compressed", [False, True], ids=["plain", "gzip"])
def test_an_array_of_any_rank_is_read_back(array: NDArray[np.uint8], compressed: bool, path: Path) -> None:
    data = idx_from_array(array)
    path.write_bytes(gzip.compress(data) if compressed else data)
    np.testing.assert_array_equal(read_idx(path), array, strict=True)


def test_sizes_are_big_endian_and_rows_come_first(path: Path) -> None:
    path.write_bytes(bytes.fromhex("00000802 00000002 00000003") + bytes([1, 2, 3, 4, 5, 6]))
    np.testing.assert_array_equal(read_idx(path), [[1, 2, 3], [4, 5, 6]])


@pytest.mark.parametrize(("change", "got"), [(-1, 59), (-60, 0), (7, 67)])
def test_data_too_short_or_too_long_is_refused_with_both_sizes(change: int, got: int, path: Path) -> None:
    data = idx_from_array(IMAGES)
    path.write_bytes(data[:change] if change < 0 else data + b"\x00" * change)
    message = f"{path}: expected 60 bytes of data for shape (5, 4, 3), got {got}; the file is truncated or not IDX"
    with pytest.raises(BadInput, match=re.escape(message)):
        read_idx(path)


@pytest.mark.parametrize("length", range(4, 16))
def test_a_header_cut_short_is_refused_with_what_it_announces(length: int, path: Path) -> None:
    path.write_bytes(idx_from_array(IMAGES)[:length])
    message = (
        f"{path}: expected the sizes of 1 to 32 dimensions, got 3 in {length} bytes; the file is truncated or not IDX"
    )
    with pytest.raises(BadInput, match=re.escape(message)):
        read_idx(path)


@pytest.mark.parametrize("rank", [0, 33, 255])
def test_more_dimensions_than_an_array_can_have_are_refused(rank: int, path: Path) -> None:
    path.write_bytes(bytes([0, 0, 8, rank]) + struct.pack(">I", 1) * rank + b"\x07")
    with pytest.raises(BadInput, match=f"expected the sizes of 1 to 32 dimensions, got {rank} in"):
        read_idx(path)


@pytest.mark.parametrize(
    ("content", "starts"),
    [
        (b"", "nothing"),
        (b"\x00", "00"),
        (b"\x00\x00\x08", "000008"),
        (b"\x89PNG\r\n\x1a\n", "89504e47"),
        (b"\x00\x00\x0d\x01" + struct.pack(">If", 1, 0.5), "00000d01"),  # IDX of 32-bit floats
        (b"\x01\x00\x08\x01", "01000801"),
        (gzip.compress(b"not an IDX file", mtime=0), "6e6f7420"),
    ],
)
def test_another_kind_of_file_is_refused_with_how_it_starts(content: bytes, starts: str, path: Path) -> None:
    path.write_bytes(content)
    with pytest.raises(
        BadInput,
        match=re.escape(f"{path}: expected an IDX file of unsigned bytes, got a file that starts with {starts}"),
    ):
        read_idx(path)


@pytest.mark.parametrize(
    "damaged",
    [
        gzip.compress(idx_from_array(IMAGES), mtime=0)[:-20],
        gzip.compress(idx_from_array(IMAGES), mtime=0)[:12],
        b"\x1f\x8b",
        b"\x1f\x8b\x08\x00" + b"\xff" * 60,
        gzip.compress(idx_from_array(IMAGES), mtime=0)[:-8] + b"\x00" * 8,  # another checksum and length
    ],
    ids=["cut", "cut in the header", "only the magic number", "junk", "checksum"],
)
def test_a_damaged_gzip_file_is_refused_by_name(damaged: bytes, path: Path) -> None:
    path.write_bytes(damaged)
    with pytest.raises(BadInput, match=re.escape(f"cannot read {path}: ")):
        read_idx(path)


def test_a_missing_file_and_a_folder_are_refused_by_name(path: Path) -> None:
    with pytest.raises(BadInput, match=re.escape(f"cannot read {path}: ") + ".*No such file"):
        read_idx(path)
    path.mkdir()
    with pytest.raises(BadInput, match=re.escape(f"cannot read {path}: ") + ".*Is a directory"):
        read_idx(path)


def test_sizes_that_the_file_does_not_hold_take_no_memory(path: Path) -> None:
    head = bytes([0, 0, 8, 3]) + struct.pack(">3I", 100_000, 10_000, 10_000)
    for content in (head + bytes(99), gzip.compress(head + bytes(99))):
        path.write_bytes(content)
        tracemalloc.start()
        with pytest.raises(
            BadInput, match=r"expected 10000000000000 bytes of data|it unpacks from \d+ bytes to 10,000,000,000,000"
        ):
            read_idx(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
        tracemalloc.stop()


def test_a_compressed_file_is_unpacked_no_further_than_its_sizes_say(path: Path) -> None:
    path.write_bytes(gzip.compress(idx_from_array(IMAGES) + bytes(50 << 20)))
    tracemalloc.start()
    with pytest.raises(
        BadInput, match="expected 60 bytes of data for shape .*, got 61 or more; the file is truncated or not IDX"
    ):
        read_idx(path)
    assert tracemalloc.get_traced_memory()[1] < 2 << 20
    tracemalloc.stop()
    path.write_bytes(gzip.compress(idx_from_array(np.zeros((100, 1000, 1000), np.uint8)), 9))
    with pytest.raises(BadInput, match=r"it unpacks from .* bytes to 100,000,000, more than 100 times as many"):
        read_idx(path)


def test_a_pipe_is_not_waited_for(path: Path) -> None:
    os.mkfifo(path)
    with pytest.raises(BadInput, match="it is no file"):
        read_idx(path)

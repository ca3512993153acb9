"""Arrays from files that anybody may have made: numpy's own come back, and a forged header allocates nothing."""

from __future__ import annotations

import io
import os
import struct
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from runtimes.arrays import array_from_npy, arrays_from_npz

ARRAYS: dict[str, NDArray[Any]] = {
    "bytes": np.arange(24, dtype=np.uint8).reshape(2, 3, 4),
    "columns first": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "big endian": np.arange(5, dtype=">i4"),
    "booleans": np.array([True, False]),
    "texts": np.array(["ant", "bumblebee"]),
    "a scalar": np.array(3.5, np.float16),
    "nothing": np.zeros((0, 7), np.float32),
    "one dimension of nothing": np.zeros((3, 0, 2)),
}


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("compressed", [False, True], ids=["plain", "deflated"])
def test_what_numpy_writes_is_read_back(name: str, compressed: bool, tmp_path: Path) -> None:
    (np.savez_compressed if compressed else np.savez)(tmp_path / "a.npz", images=ARRAYS[name], labels=np.arange(3))
    found = arrays_from_npz(tmp_path / "a.npz", ("images",), ("labels", "names"))
    assert list(found) == ["images", "labels"]
    np.testing.assert_array_equal(found["images"], ARRAYS[name], strict=True)
    np.save(tmp_path / "a.npy", ARRAYS[name])
    np.testing.assert_array_equal(array_from_npy(tmp_path / "a.npy"), ARRAYS[name], strict=True)


def test_a_header_of_numpys_second_version_is_read(tmp_path: Path) -> None:
    with (tmp_path / "a.npy").open("wb") as file:
        np.lib.format.write_array(file, ARRAYS["bytes"], version=(2, 0))  # type: ignore[no-untyped-call, unused-ignore]  # numpy 2.2, Python 3.10's last, has no types for it
    np.testing.assert_array_equal(array_from_npy(tmp_path / "a.npy"), ARRAYS["bytes"])


def npy(header: str, data: bytes = b"", *, length: int | None = None) -> bytes:
    text = header.encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text) if length is None else length) + text + data


def facts(descr: str = "'|u1'", shape: str = "(2, 3)", fortran: str = "False") -> str:
    return f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}}}\n"


FORGED = {
    "sizes of terabytes": (
        npy(facts(shape="(1000000, 1000000, 4)"), bytes(6)),
        "expected 4,000,000,000,000 bytes for an array of uint8",
    ),
    "sizes below zero": (npy(facts(shape="(-2, -3)"), bytes(6)), "the header of its array gives the shape"),
    "a size of a half": (npy(facts(shape="(2.5, 3)"), bytes(6)), "the header of its array gives the shape"),
    "a shape that is a number": (npy(facts(shape="6"), bytes(6)), "the header of its array gives the shape"),
    "one byte too few": (npy(facts(), bytes(5)), "expected 6 bytes for an array of uint8 (2, 3), got 5"),
    "one byte too many": (npy(facts(), bytes(7)), "expected 6 bytes for an array of uint8 (2, 3), got 7"),
    "objects": (npy(facts("'|O'"), bytes(48)), "expected an array of plain numbers, got one of type |O"),
    "records": (
        npy(facts("[('a', '|u1')]"), bytes(6)),
        "expected an array of plain numbers, got one of type [('a', '|u1')]",
    ),
    "items of nothing": (npy(facts("'|S0'", "(1000000000000,)")), "which holds nothing"),
    "a type that numpy has not": (npy(facts("'<f3'"), bytes(18)), "type"),
    "a header of Python 2": (npy(facts(shape="(2L, 3L)"), bytes(6)), "the header of its array cannot be read"),
    "a header that is no dictionary": (npy("[1, 2]"), "the header of its array cannot be read"),
    "a header nested without end": (npy("(" * 9000), "the header of its array cannot be read"),
    "a header longer than the file": (npy(facts(), length=60000), "cut short, or longer than 10000 bytes"),
    "another format": (b"PK\x03\x04" + bytes(100), "it is no array in numpy's format"),
    "nothing": (b"", "it is no array in numpy's format"),
}


@pytest.mark.parametrize("case", FORGED)
@pytest.mark.parametrize("archived", [False, True], ids=["npy", "npz"])
def test_a_forged_header_is_refused_in_one_line_before_memory_is_taken(
    case: str, archived: bool, tmp_path: Path
) -> None:
    data, says = FORGED[case]
    path = tmp_path / "forged"
    if archived:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("images.npy", data)
    else:
        path.write_bytes(data)
    tracemalloc.start()
    with pytest.raises(ValueError, match=".") as refused:
        arrays_from_npz(path, ("images",)) if archived else array_from_npy(path)
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


def test_an_archive_that_unpacks_to_gigabytes_is_refused_before_it_does(tmp_path: Path) -> None:
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("images.npy", "w") as member:
        member.write(npy(facts(shape="(100, 1000, 1000)")))
        for _ in range(100):
            member.write(bytes(1_000_000))
    assert path.stat().st_size < 200_000
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"it unpacks from \d+,\d+ bytes to 100,\d+,\d+, more than 100 times as many"):
        arrays_from_npz(path, ("images",))
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()


def test_black_pictures_of_a_common_size_are_no_bomb(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "black.npz", images=np.zeros((100, 224, 224, 3), np.uint8))
    assert arrays_from_npz(tmp_path / "black.npz", ("images",))["images"].shape == (100, 224, 224, 3)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compressions_than_numpys_are_refused(method: int, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w", method) as archive:
        archive.writestr("images.npy", npy(facts(), bytes(6)))
    with pytest.raises(ValueError, match=r"'images\.npy' is compressed by another method than deflate"):
        arrays_from_npz(tmp_path / "a.npz", ("images",))


def test_an_archive_that_says_another_size_than_it_holds_is_refused(tmp_path: Path) -> None:
    """The directory of a zip file says how large a member is; one that holds less ends early."""
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", npy(facts(shape="(9, 1000)"), bytes(90)))
    size = len(npy(facts(shape="(9, 1000)"))) + 90
    (tmp_path / "a.npz").write_bytes(
        whole.getvalue().replace(struct.pack("<I", size), struct.pack("<I", size - 90 + 9000))
    )
    with pytest.raises(ValueError, match=r"the file ends after|Bad CRC-32"):
        arrays_from_npz(tmp_path / "a.npz", ("images",))


def test_what_is_lacking_is_said_with_what_is_there(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", pixels=ARRAYS["bytes"], meta=np.array([{}], object))
    with pytest.raises(ValueError, match=r"expected an array 'images', got pixels uint8 \(2, 3, 4\), meta"):
        arrays_from_npz(tmp_path / "a.npz", ("images",))
    assert arrays_from_npz(tmp_path / "a.npz", ("pixels",))["pixels"].shape == (
        2,
        3,
        4,
    )  # the others may be whatever they are


@pytest.mark.parametrize("read", [array_from_npy, lambda path: arrays_from_npz(path, ("images",))], ids=["npy", "npz"])
def test_what_is_no_file_is_not_waited_for(read: Any, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, said in (
        (tmp_path / "pipe", "it is no file"),
        (tmp_path, "it is no file"),
        (tmp_path / "gone", "No such file"),
    ):
        with pytest.raises(ValueError, match=said):
            read(path)

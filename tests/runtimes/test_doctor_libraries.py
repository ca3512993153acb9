"""What a library needs, by its file, and whether the loader would find it."""

from __future__ import annotations

import ctypes.util
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from machine_trees import library, write

from runtimes.doctor.elf import Dynamic, dynamic_of
from runtimes.doctor.host import Host
from runtimes.doctor.libraries import Loader, missing_of
from runtimes.errors import BadInput


def host(root: Path, **environment: str) -> Host:
    return Host(root, "x86_64", "3.12.3", (), environment, is_here=False)


def cache(entries: dict[str, str]) -> bytes:
    """`/etc/ld.so.cache` as glibc 2.32 and newer write it, behind an empty one of old."""
    strings, table = b"", b""
    start = 48 + 24 * len(entries)
    for name, path in entries.items():
        places = []
        for text in (name, path):
            places.append(start + len(strings))
            strings += text.encode() + b"\0"
        table += struct.pack("<iIIIQ", 0x303, *places, 0, 0)
    head = b"glibc-ld.so.cache1.1" + struct.pack("<IIBxxxIIII", len(entries), len(strings), 2, 0, 0, 0, 0)
    return b"ld.so-1.7.0\0" + b"\0\0\0\0" + head + table + strings


def test_what_a_library_needs(tmp_path: Path) -> None:
    write(tmp_path, {"a.so": library(["libb.so.1", "libc.so.6"], "$ORIGIN/../x:/y"), "b.so": library(rpath="/z")})
    assert dynamic_of(tmp_path / "a.so") == Dynamic(("libb.so.1", "libc.so.6"), ("$ORIGIN/../x", "/y"))
    assert dynamic_of(tmp_path / "b.so") == Dynamic((), ("/z",), before_environment=True)


@pytest.mark.parametrize("cut", [0, 5, 30, 64, 100, 170, 200, 250])
def test_a_damaged_library_is_named(tmp_path: Path, cut: int) -> None:
    write(tmp_path, {"a.so": library(["libb.so.1", "libc.so.6"])[:cut]})
    with pytest.raises(BadInput, match=r"^expected a 64-bit ELF library, got .*/a\.so: "):
        dynamic_of(tmp_path / "a.so")


def test_no_byte_of_a_library_crashes_the_reader(tmp_path: Path) -> None:
    whole = library(["libb.so.1", "libc.so.6"], "$ORIGIN")
    for place in range(6, len(whole)):
        path = tmp_path / "a.so"
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        try:
            dynamic_of(path)
        except BadInput:
            continue


def test_a_library_is_found_where_the_loader_looks(tmp_path: Path) -> None:
    names = ("opt/first/libx.so.1", "opt/cached/libx.so.1", "usr/lib/x86_64-linux-gnu/libx.so.1", "own/libx.so.1")
    write(tmp_path, dict.fromkeys(names, library()))
    write(tmp_path, {"etc/ld.so.cache": cache({"libx.so.1": "/opt/cached/libx.so.1", "libgone.so": "/opt/gone"})})
    found = Loader(host(tmp_path, LD_LIBRARY_PATH="/opt/first"))
    assert found.find("libx.so.1") == tmp_path / names[0]
    own = Dynamic((), ("$ORIGIN",))
    assert found.find("libx.so.1", own, tmp_path / "own") == tmp_path / names[0]
    assert found.find("libx.so.1", Dynamic((), ("${ORIGIN}",), True), tmp_path / "own") == tmp_path / names[3]
    plain = Loader(host(tmp_path))
    assert plain.find("libx.so.1", own, tmp_path / "own") == tmp_path / names[3]
    assert plain.find("libx.so.1") == tmp_path / names[1]
    assert plain.find("libgone.so") is None
    (tmp_path / "etc" / "ld.so.cache").unlink()
    assert Loader(host(tmp_path)).find("libx.so.1") == tmp_path / names[2]
    assert plain.find("/own/libx.so.1") == tmp_path / names[3]


def test_what_is_missing_below_another_library_is_named(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "pkg/a.so": library(["libb.so", "libz.so"], "$ORIGIN"),
            "pkg/libb.so": library(["liba.so", "libdeep.so.2", "libother.so"]),
            "pkg/liba.so": library(["libb.so"]),
            "usr/lib/libz.so": b"not a library",
            "beside/libother.so": library(["libb.so"]),
        },
    )
    found = missing_of(tmp_path / "pkg" / "a.so", Loader(host(tmp_path)))
    assert found == ("liba.so", "libdeep.so.2", "libother.so")  # RUNPATH is not handed on
    beside = [tmp_path / "beside", tmp_path / "pkg"]
    assert missing_of(tmp_path / "pkg" / "a.so", Loader(host(tmp_path)), beside) == ("libdeep.so.2",)


def test_this_machines_loader_agrees(tmp_path: Path) -> None:
    loader = Loader(Host())
    for name in ("libc.so.6", "libstdc++.so.6", "libm.so.6", "libnot-there.so.7"):
        done = subprocess.run(
            [sys.executable, "-c", f"import ctypes; ctypes.CDLL('{name}')"], capture_output=True, check=False
        )
        assert (loader.find(name) is not None) == (done.returncode == 0), name
    assert missing_of(Path(sys.executable), loader) == ()
    assert ctypes.util.find_library("m")

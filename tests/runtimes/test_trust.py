"""This machine's engine key: where it lies, who may know it, what it seals; and folders that only we may write to."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runtimes.errors import BackendUnavailable, BadInput, BundleError
from runtimes.nvidia.trust import (
    KEY_VARIABLE,
    check_trusted,
    ensure_machine_key,
    is_built_here,
    key_file,
    machine_key,
    seal_of,
    trusted_engines,
    with_seal,
    without_seal,
)
from runtimes.private import open_regular, private_folder, read_regular

ROOT = Path(__file__).resolve().parents[2]
SHA256 = "ab" * 32


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder of the test's own, without a key."""
    for name in (KEY_VARIABLE, "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def said(error: Exception, *parts: str) -> bool:
    """Is it one line with all of these?"""
    return "\n" not in str(error) and all(part in str(error) for part in parts)


# --- the key ---


def test_the_first_build_makes_a_key_that_nobody_else_may_read(home: Path) -> None:
    assert machine_key() is None
    assert not any(home.iterdir())
    made = ensure_machine_key()
    path = home / ".local" / "share" / "resnet-export" / "engine.key"
    assert path == key_file()
    assert (len(made), ensure_machine_key(), machine_key()) == (32, made, made)
    assert path.read_text() == made.hex() + "\n"
    assert mode(path) == 0o600
    assert [mode(folder) for folder in (path.parent, *path.parents[1:3])] == [0o700] * 3
    assert [one.name for one in path.parent.iterdir()] == ["engine.key"]


def test_the_keys_place_is_chosen_by_two_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", "data")  # relative, which counts as none
    assert key_file() == home / ".local/share/resnet-export/engine.key"
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert key_file() == tmp_path / "data/resnet-export/engine.key"
    monkeypatch.setenv(KEY_VARIABLE, str(tmp_path / "volume" / "key"))
    assert ensure_machine_key() == bytes.fromhex((tmp_path / "volume" / "key").read_text())
    assert (mode(tmp_path / "volume"), mode(tmp_path / "volume" / "key")) == (0o700, 0o600)
    monkeypatch.setenv(KEY_VARIABLE, "key")
    with pytest.raises(BadInput, match=f"expected an absolute path in {KEY_VARIABLE}, got 'key'"):
        ensure_machine_key()


def test_processes_that_make_a_key_at_once_agree_on_one(home: Path) -> None:
    code = (
        "import sys; sys.stdin.readline(); from runtimes.nvidia.trust import ensure_machine_key; "
        "print(ensure_machine_key().hex())"
    )
    running = [
        subprocess.Popen(
            [sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    found = set()
    for one in running:
        assert one.stdin is not None
        one.stdin.write("\n")
        one.stdin.flush()
    for one in running:
        found.add(one.communicate()[0].strip())
    assert found == {ensure_machine_key().hex()}


@pytest.mark.parametrize("allowed", [0o640, 0o604, 0o660, 0o602, 0o601])
def test_a_key_that_others_may_know_is_refused(allowed: int) -> None:
    ensure_machine_key()
    key_file().chmod(allowed)
    for use in (machine_key, ensure_machine_key):
        with pytest.raises(BackendUnavailable) as caught:
            use()
        assert said(caught.value, f"got mode {allowed:o}", "remove it, and build the engines again")
        assert caught.value.exit_code == 3


def test_a_key_of_another_user_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    ensure_machine_key()
    mine = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: mine + 1)
    with pytest.raises(
        BackendUnavailable, match=f"belongs to another user .{mine}.; run as that user, or set {KEY_VARIABLE}"
    ):
        machine_key()


@pytest.mark.parametrize("content", ["", "00", "0" * 63, "0" * 65, "0" * 64 + "\n\n", "g" * 64, "\0" * 64])
def test_a_file_that_is_no_key_is_refused_and_not_replaced(content: str) -> None:
    ensure_machine_key()
    key_file().write_text(content)
    with pytest.raises(BackendUnavailable, match="expected 64 hexadecimal digits in this machine's engine key"):
        ensure_machine_key()
    assert key_file().read_text() == content


def test_a_link_a_folder_or_a_pipe_is_no_key(tmp_path: Path) -> None:
    ensure_machine_key()
    path = key_file()
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(
        BackendUnavailable, match="cannot read this machine's engine key, .*: it is a link; remove it, or set"
    ):
        machine_key()
    path.unlink()
    os.mkfifo(path, 0o600)
    with pytest.raises(BackendUnavailable, match="it is no file"):
        machine_key()
    path.unlink()
    path.mkdir()
    with pytest.raises(BackendUnavailable, match="Is a directory"):
        machine_key()


def test_a_home_that_cannot_be_written_to_says_how_to_choose_another_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    for variable, value in (("XDG_DATA_HOME", tmp_path / "file"), (KEY_VARIABLE, tmp_path / "file" / "key")):
        monkeypatch.setenv(variable, str(value))
        with pytest.raises(BackendUnavailable) as caught:
            ensure_machine_key()
        assert said(caught.value, f"set {KEY_VARIABLE} to a file"), caught.value
        assert caught.value.exit_code == 3


def test_without_a_home_a_build_says_so_and_nothing_was_built_here(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    assert machine_key() is None
    with pytest.raises(BackendUnavailable) as caught:
        ensure_machine_key()
    assert said(caught.value, "this user has no home folder", f"set {KEY_VARIABLE} to a file")


def test_a_key_folder_that_others_may_write_to_is_refused(home: Path) -> None:
    folder = home / ".local" / "share" / "resnet-export"
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    with pytest.raises(BackendUnavailable, match="one that others may write to .mode 777.; remove it, or set"):
        ensure_machine_key()


# --- seals ---


DOCUMENT: dict[str, Any] = {"engine_sha256": SHA256, "options": {"version_compatible": True}, "seconds": 0.1}


def test_a_seal_is_over_all_that_a_sidecar_says_whatever_the_order() -> None:
    key = ensure_machine_key()
    document = {**DOCUMENT, "seal": seal_of(DOCUMENT, key)}
    assert is_built_here(document)
    assert is_built_here(dict(reversed(document.items())))
    changes: list[dict[str, Any]] = [
        {"engine_sha256": "cd" * 32},
        {"options": {}},
        {"seconds": 0.2},
        {"more": 1},
        {"seal": ""},
        {"seal": "0" * 64},
    ]
    for change in [*changes, {"seal": None}, {"seal": document["seal"].upper()}]:
        assert not is_built_here({**document, **change}), change
    assert not is_built_here({name: value for name, value in document.items() if name != "options"})


def test_another_machines_seal_does_not_count_here() -> None:
    ensure_machine_key()
    for seal in (seal_of(DOCUMENT, bytes(32)), seal_of(DOCUMENT, b"")):
        assert not is_built_here({**DOCUMENT, "seal": seal})


def test_an_engine_that_nobody_vouches_for_is_refused_with_both_remedies() -> None:
    with pytest.raises(BundleError) as caught:
        check_trusted(DOCUMENT, "it", ())
    assert said(
        caught.value, "it was not built on this machine", "resnet-deploy build BUNDLE", f"--trust-engine {SHA256}"
    )
    assert "or by an earlier version" in str(caught.value)
    with pytest.raises(BundleError, match="it was not built on this machine, and engines are code"):
        check_trusted({**DOCUMENT, "seal": "0" * 64}, "it", ())
    check_trusted(DOCUMENT, "it", {SHA256})
    with pytest.raises(BundleError, match="was not built on this machine"):
        check_trusted(DOCUMENT, "it", {"cd" * 32})
    with pytest.raises(BundleError, match="its sidecar names no sha256"):
        check_trusted({"engine_sha256": "\033[31m"}, "it", ())


def test_an_engine_that_is_named_is_trusted_whatever_became_of_the_key() -> None:
    ensure_machine_key()
    key_file().chmod(0o644)
    check_trusted({**DOCUMENT, "seal": "0" * 64}, "it", {SHA256})
    with pytest.raises(BackendUnavailable, match="got mode 644"):
        check_trusted({**DOCUMENT, "seal": "0" * 64}, "it", ())


def test_engines_are_named_by_sha256_alone() -> None:
    assert trusted_engines(SHA256.upper()) == trusted_engines([SHA256, SHA256]) == {SHA256}
    assert trusted_engines(()) == frozenset()
    for wrong in ("", "all", SHA256[:-1], SHA256 + "0", "x" * 64):
        with pytest.raises(BadInput, match="expected the sha256 of an engine, 64 hexadecimal digits, got "):
            trusted_engines(wrong)


def test_kernels_are_this_machines_and_of_one_engine() -> None:
    key = bytes(range(32))
    data = with_seal(b"kernels", SHA256, key)
    assert without_seal(data, SHA256, key) == b"kernels"
    for other, sha256, known in (
        (data[:-1], SHA256, key),
        (data, "cd" * 32, key),
        (data, SHA256, bytes(32)),
        (b"", SHA256, key),
        (b"x", SHA256, key),
    ):
        assert without_seal(other, sha256, known) is None


# --- folders and files ---


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda folder: folder.chmod(0o770), "one that others may write to (mode 770)"),
        (lambda folder: folder.chmod(0o777), "one that others may write to (mode 777)"),
        (lambda folder: (folder.rmdir(), folder.symlink_to(folder.parent.parent)), "a link"),
    ],
    ids=["group", "others", "link"],
)
@pytest.mark.parametrize("which", ["one", "one/two"])
def test_a_private_folder_that_others_may_have_filled_is_refused(
    tmp_path: Path, which: str, spoil: Callable[[Path], object], problem: str
) -> None:
    (tmp_path / which).mkdir(parents=True)
    spoil(tmp_path / which)
    with pytest.raises(BackendUnavailable) as caught:
        private_folder(tmp_path, "one", "two", remedy="go elsewhere")
    assert said(
        caught.value,
        f"expected {tmp_path / which} to be a folder that you alone may write to, got {problem}; "
        "remove it, or go elsewhere",
    )


def test_a_private_folder_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: mine + 1)
    with pytest.raises(BackendUnavailable, match=f"got one of another user .{mine}.; remove it, or go elsewhere"):
        private_folder(tmp_path, "one", remedy="go elsewhere")


def test_every_folder_that_is_made_is_private_also_where_the_umask_is_open(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        folder = private_folder(tmp_path / "a" / "b", "c", "d", remedy="")
    finally:
        os.umask(before)
    assert [mode(one) for one in (folder, *folder.parents[:3])] == [0o700] * 4
    assert private_folder(tmp_path / "a" / "b", "c", "d", remedy="") == folder


def test_a_private_folder_that_cannot_be_made_says_why(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for names in (("file",), ("file", "two")):
        with pytest.raises(BackendUnavailable, match="cannot make the folder .*file.*; go elsewhere"):
            private_folder(tmp_path, *names, remedy="go elsewhere")


def test_only_files_are_read_and_no_more_of_them_than_is_allowed(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    (tmp_path / "link").symlink_to(path)
    assert read_regular(path, 5) == read_regular(tmp_path / "link", 5) == b"12345"
    os.mkfifo(tmp_path / "pipe")
    for place, code in (
        (path, errno.EFBIG),
        (tmp_path / "pipe", errno.EINVAL),
        (Path("/dev/zero"), errno.EINVAL),
        (tmp_path, errno.EISDIR),
    ):
        with pytest.raises(OSError, match=".") as caught:
            read_regular(place, 4)
        assert caught.value.errno == code
    with pytest.raises(OSError, match=".") as caught:
        open_regular(tmp_path / "link", follow_links=False)
    assert caught.value.errno == errno.ELOOP

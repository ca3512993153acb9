"""`--data` by URL: the same pictures in the same order as from a folder, and what storage does wrong in one line."""

from __future__ import annotations

import gzip
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import fsspec
import numpy as np
import pytest
from data_sets import LABELS, PIXELS, idx_from_array, pictures, tree
from fsspec.registry import _registry
from PIL import Image
from stand_in_storage import FaultyFileSystem, faulty_fixture, hanging, put, raising  # noqa: F401  # a fixture

from calibration import storage
from calibration.annotations import with_labels
from calibration.data import ImageSource, open_source
from calibration.reading import Unreadable, read_ahead
from calibration.synsets import synsets_from_file
from runtimes.errors import BadInput, StorageUnavailable

pytestmark = pytest.mark.usefixtures("faulty")
Faulty = type[FaultyFileSystem]
TREE = ("a/1.png", "a-b/2.JPG", "a-b/deeper/10.png", "a-b/deeper/9.png", "a b/é #?%20.png", "c/x.webp")


def mixed_folder(folder: Path) -> Path:
    """Classes whose order differs by path and by text, hidden files, and what is no picture."""
    for place, name in enumerate(TREE):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(PIXELS[place]).save(folder / name)
    for name in ("a/notes.txt", "a/.hidden.png", ".cache/x.png", "drawings/y.svg"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("no picture")
    return folder


def facts(source: ImageSource) -> tuple[object, ...]:
    left_out = tuple(text.replace(source.name, "DATA") for text in source.left_out)
    labels = None if source.labels is None else source.labels.tolist()
    return source.count, source.names, source.classes, labels, left_out


@pytest.mark.parametrize("url", ["memory://store/data", "faulty://store/data", "file://FOLDER", "memory://store/data/"])
def test_a_url_gives_what_the_folder_gives(url: str, tmp_path: Path) -> None:
    folder = mixed_folder(tmp_path / "data")
    if "FOLDER" not in url:
        put(url.removesuffix("/"), folder)
    source, local = open_source(url.replace("FOLDER", str(folder))), open_source(str(folder))
    assert facts(source) == facts(local)
    assert source.names == ("a/1.png", TREE[4], *TREE[1:4], "c/x.webp")
    assert source.left_out[-1].endswith("1 class folder without a picture: drawings")
    np.testing.assert_array_equal(pictures(source), pictures(local))
    found = pickle.loads(pickle.dumps(source.subset(np.array([4, 1]))))
    np.testing.assert_array_equal(pictures(found), pictures(local)[[4, 1]])


@pytest.mark.parametrize("kind", ["npz", "npy", "idx", "idx folder", "arrays"])
def test_files_of_many_pictures_are_read_by_url(kind: str, tmp_path: Path) -> None:
    expected, labels = PIXELS, None
    if kind == "npz":
        np.savez(tmp_path / "set.npz", images=PIXELS, labels=LABELS)
        labels, name = LABELS, "/set.npz"
    elif kind == "npy":
        np.save(tmp_path / "set.npy", PIXELS)
        name = "/set.npy"
    elif kind == "arrays":
        for place, array in enumerate(PIXELS):
            np.save(tmp_path / f"{place}.npy", array)
        name = ""
    else:
        expected, labels = np.ascontiguousarray(PIXELS[..., 0]), LABELS
        for part in ("train", "t10k"):
            data = gzip.compress(idx_from_array(expected if part == "t10k" else expected[:2]))
            (tmp_path / f"{part}-images-idx3-ubyte.gz").write_bytes(data)
            (tmp_path / f"{part}-labels-idx1-ubyte.gz").write_bytes(
                gzip.compress(idx_from_array(LABELS.astype(np.uint8)))
            )
        name = "/t10k-images-idx3-ubyte.gz" if kind == "idx" else ""
    source = open_source(put("faulty://sets", tmp_path) + name, split="test")
    for one in (source, pickle.loads(pickle.dumps(source))):
        np.testing.assert_array_equal(pictures(one), expected)
        assert (None if one.labels is None else one.labels.tolist()) == (None if labels is None else labels.tolist())
        assert one.name.startswith("faulty://sets")


def test_labels_and_synsets_are_read_by_url(tmp_path: Path) -> None:
    for place in range(3):
        Image.fromarray(PIXELS[place]).save(tmp_path / f"{place}.png")
    (tmp_path / "labels.txt").write_text("0.png ant\n1.png bee\n2.png ant\n")
    (tmp_path / "words.json").write_text('{"0": ["n01440764", "tench"], "1": ["n01443537", "goldfish"]}')
    put("memory://flat", tmp_path)
    for where in ("memory://flat", f"file://{tmp_path}"):
        source = with_labels(open_source(where), f"{where}/labels.txt")
        assert source.labels is not None
        assert (source.labels.tolist(), source.classes) == ([0, 1, 0], ("ant", "bee"))
        assert synsets_from_file(f"{where}/words.json", 2) == ("n01440764", "n01443537")
    with pytest.raises(BadInput, match=r"cannot read memory://flat/none\.txt: there is no such file"):
        with_labels(source, "memory://flat/none.txt")
    with pytest.raises(BadInput, match=r"cannot read memory://flat/none\.txt: there is no such file"):
        synsets_from_file("memory://flat/none.txt", 2)


# --- how it is asked ---


def test_a_listing_takes_one_question_a_folder_and_a_picture_one(faulty: Faulty, tmp_path: Path) -> None:
    source = open_source(put("faulty://many", tree(tmp_path)))
    assert faulty.asked == {"file system": 1, "info": 1, "ls": 3}
    pictures(source)
    assert faulty.asked == {"file system": 1, "info": 1, "ls": 3, "open": 2}


def test_all_threads_of_a_process_use_one_file_system(faulty: Faulty, tmp_path: Path) -> None:
    source = open_source(put("faulty://many", tree(tmp_path)))
    gate = threading.Barrier(4)

    def read(place: int) -> Image.Image:
        gate.wait()
        return source.image(place % 2)

    with ThreadPoolExecutor(4) as pool:
        assert {image.size for image in pool.map(read, range(4))} == {(12, 10)}
    assert faulty.asked["file system"] == 1


FORKED = """
import os, pickle, sys, warnings
import fsspec
from fsspec.asyn import AsyncFileSystem
from calibration.data import open_source

class Remote(AsyncFileSystem):
    protocol = "remote"
    async def _info(self, path, **options):
        return {"name": self._strip_protocol(path), "size": 0, "type": "directory"}
    async def _ls(self, path, detail=True, **options):
        return [{"name": f"{self._strip_protocol(path)}/{place}.png", "size": 0, "type": "file"} for place in range(2)]
    async def _cat_file(self, path, **options):
        return open(sys.argv[1], "rb").read()

fsspec.register_implementation("remote", Remote)
source = open_source("remote://bucket")
assert source.image(0).size == (12, 10)
if (child := os.fork()) == 0:
    os._exit(0 if source.image(1).size == (12, 10) else 3)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert source.image(1).size == (12, 10)
"""


def test_a_forked_process_reads_by_connections_of_its_own(tmp_path: Path) -> None:
    picture = tree(tmp_path) / "cats" / "one.png"
    subprocess.run([sys.executable, "-W", "ignore", "-c", FORKED, str(picture)], check=True, timeout=60)


# --- what goes wrong ---


def test_a_picture_that_vanishes_after_the_listing_cannot_be_read_and_the_others_can(
    faulty: Faulty, tmp_path: Path
) -> None:
    source = open_source(put("faulty://store", tree(tmp_path)))
    del faulty.store["store/cats/one.png"]
    read = list(read_ahead(source, range(2), lambda picture: picture, ahead=2))
    assert read[0] == Unreadable("cannot read the picture faulty://store/cats/one.png: there is no such file")
    assert isinstance(read[1], Image.Image)
    faulty.faults["open", "store/dogs/one.png"] = raising(IsADirectoryError(21, "Is a directory"))
    with pytest.raises(BadInput, match=r"faulty://store/dogs/one\.png: there is no such file"):
        source.image(1)


def test_a_folder_that_vanishes_while_it_is_listed_is_told(faulty: Faulty, tmp_path: Path) -> None:
    url = put("faulty://store", tree(tmp_path))
    faulty.faults["ls", "store/dogs"] = raising(FileNotFoundError("store/dogs"))
    with pytest.raises(BadInput, match="faulty://store: a folder in it vanished while it was listed; leave it alone"):
        open_source(url)


def test_a_damaged_picture_is_named_by_its_url(faulty: Faulty, tmp_path: Path) -> None:
    source = open_source(put("faulty://store", tree(tmp_path)))
    for data in (b"", b"\xff\xd8\xff", faulty.store["store/cats/one.png"][:90]):
        faulty.store["store/cats/one.png"] = data
        with pytest.raises(BadInput, match=r"cannot read the picture faulty://store/cats/one\.png: "):
            source.image(0)


class CredentialsError(Exception):
    """As botocore's and Google's, which are no OSError."""


class Refused(Exception):
    """As httpx's, with a response."""

    def __init__(self, status: int) -> None:
        super().__init__(f"status {status}\nfor a request\n")
        self.response = type("Response", (), {"status_code": status})


FAULTS: dict[str, tuple[Callable[[], None], str]] = {
    "denied": (raising(PermissionError("Forbidden")), "cannot read faulty://URL: Forbidden; check the network and the"),
    "connection": (raising(ConnectionResetError(104, "Connection reset")), "Connection reset; check the network"),
    "no credentials": (raising(CredentialsError("Unable to locate credentials\n")), "Unable to locate credentials; "),
    "no words": (raising(CredentialsError()), "cannot read faulty://URL: CredentialsError; check"),
    "many words": (raising(Refused(503)), "cannot read faulty://URL: status 503; check the network"),
    "its own timeout": (raising(TimeoutError()), "cannot read faulty://URL: TimeoutError; check"),
    "hangs": (hanging(1), "expected an answer from faulty://URL within 0 s, got none; check the network"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("question", ["info", "ls", "open"])
def test_storage_that_does_not_answer_as_it_should_is_told_in_one_line(
    fault: str, question: str, faulty: Faulty, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    act, said = FAULTS[fault]
    url = put("faulty://store", tree(tmp_path))
    path = {"info": "store", "ls": "store/dogs", "open": "store/dogs/one.png"}[question]
    source = open_source(url)
    faulty.faults[question, path] = act
    if fault == "hangs":
        monkeypatch.setattr(storage, "PATIENCE_S", 0.1)
        monkeypatch.setattr(storage, "LONG_PATIENCE_S", 0.1)
    read = partial(read_ahead, source, range(2), lambda picture: picture, ahead=2)
    with pytest.raises(StorageUnavailable) as refused:
        list(read()) if question == "open" else open_source(url)
    assert said.replace("URL", path if question == "open" else "store") in str(refused.value)
    assert "\n" not in str(refused.value)
    assert refused.value.exit_code == 3
    assert pickle.loads(pickle.dumps(refused.value)).args == refused.value.args


def test_an_answer_of_404_is_a_file_that_is_not_there(faulty: Faulty, tmp_path: Path) -> None:
    source = open_source(put("faulty://store", tree(tmp_path)))
    faulty.faults["open", "store/dogs/one.png"] = raising(Refused(404))
    with pytest.raises(BadInput, match="there is no such file"):
        source.image(1)


@pytest.mark.parametrize(
    ("url", "module", "said"),
    [
        ("s3://bucket/set", "s3fs", r"s3:// needs a package .*; pip install 'resnet-export\[storage\]' s3fs$"),
        ("gs://bucket/set", "gcsfs", r"gs:// needs a package .*; pip install 'resnet-export\[storage\]' gcsfs$"),
        ("hf://datasets/a/b", "huggingface_hub", r"hf:// needs a package .*\[storage\]' huggingface_hub$"),
        ("memory://set", "fsspec", r"memory:// needs a package .*; pip install 'resnet-export\[storage\]'$"),
    ],
)
def test_a_package_that_is_missing_is_named_with_the_command_that_installs_it(
    url: str, module: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(_registry, url.partition(":")[0], raising=False)
    with pytest.raises(StorageUnavailable, match=said):
        open_source(url)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("memory://nothing", "--data: memory://nothing does not exist; give a folder of pictures"),
        ("faulty://store/cats/one.png", "expected a folder of pictures, got the picture faulty://store/cats/one.png"),
        ("faulty://store/other", "holds no pictures; expected files such as .jpg"),
        ("ftq://server/x", "expected a path, or a URL as s3://, gs:// or hf://, got 'ftq://server/x'"),
        ("zip://x::memory://a.zip", "expected one URL, got zip://x::memory://a.zip; unpack the archive"),
        ("faulty://store/bad.npz", "--data: cannot read faulty://store/bad.npz: "),
        ("faulty://store/bad.idx", "faulty://store/bad.idx: expected an IDX file of unsigned bytes, got"),
    ],
)
def test_what_a_url_does_not_name_is_told(url: str, said: str, tmp_path: Path) -> None:
    tree(tmp_path)
    (tmp_path / "other").mkdir()
    for name in ("other/x.txt", "bad.npz", "bad.idx"):
        (tmp_path / name).write_text("nothing of the kind")
    put("faulty://store", tmp_path)
    with pytest.raises(BadInput) as refused:
        open_source(url)
    assert said in str(refused.value)


def test_a_password_in_a_url_is_refused_and_not_repeated() -> None:
    with pytest.raises(BadInput, match="expected a URL without a password") as refused:
        open_source("sftp://user:hunter2@server/x")
    assert "hunter2" not in str(refused.value)


def test_the_parts_of_a_data_set_are_named_by_their_urls(tmp_path: Path) -> None:
    for name in ("train/ant", "val/ant"):
        (tmp_path / name).mkdir(parents=True)
        Image.fromarray(PIXELS[0]).save(tmp_path / name / "a.png")
    with pytest.raises(BadInput, match="give one of them: --data memory://set/val$"):
        open_source(put("memory://set", tmp_path))


def test_markers_of_folders_are_no_files(tmp_path: Path) -> None:
    put("memory://marked", tree(tmp_path))
    fsspec.filesystem("memory").store["/marked/cats/"] = fsspec.filesystem("memory").store["/marked/cats/one.png"]
    assert open_source("memory://marked").names == ("cats/one.png", "dogs/one.png")

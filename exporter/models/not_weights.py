"""Recognise files that are given as checkpoints and are none, by their first bytes; nothing in them is run."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

from runtimes.errors import BadInput

HEAD_BYTES = 4096
SMALL_BYTES = 1 << 20
"""Larger than any index of a checkpoint, so that a larger file is not read whole."""
BEGINNINGS = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself; fetch it: git lfs pull, in its repository"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras writes, not a checkpoint of PyTorch; {own}"),
    (b"\x93NUMPY", "a NumPy array (.npy), not a checkpoint of PyTorch; {own}"),
    (b"GGUF", "a GGUF file, not a checkpoint of PyTorch; {own}"),
    (b"%PDF", "a PDF document, not a checkpoint; {again}"),
    (b"\x89PNG", "a picture, not a checkpoint; give pictures with --data"),
    (b"\xff\xd8\xff", "a picture, not a checkpoint; give pictures with --data"),
    (b"\x1f\x8b", "a gzip archive; unpack it and give what is in it"),
    (b"BZh", "a bzip2 archive; unpack it and give what is in it"),
    (b"\xfd7zXZ", "an xz archive; unpack it and give what is in it"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard archive; unpack it and give what is in it"),
    (b"7z\xbc\xaf", "a 7-Zip archive; unpack it and give what is in it"),
    (b"Rar!", "a RAR archive; unpack it and give what is in it"),
)
OWN = "load it where it comes from and save the tensors under a ResNet's names with torch.save or safetensors"
AGAIN = "download it again, by the link to the file itself"


def refuse_other_formats(path: Path) -> None:
    """Refuse a file that cannot be a checkpoint, with what it is and what to do.

    Raises:
        BadInput: the path is no file, the file cannot be read, or has another format than those of PyTorch and
            safetensors.
    """
    try:
        if path.is_dir():
            raise BadInput(f"--weights: {path} is a folder, expected a file; {_which_file(path)}")
        if not path.is_file():
            raise BadInput(f"--weights: there is no file {path}; give default, random or the path of a checkpoint")
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
        what = _format_of(path, head)
    except OSError as error:
        raise BadInput(f"cannot read the checkpoint {path}: {error.strerror}") from error
    if what:
        raise BadInput(f"{path} is {what.format(own=OWN, again=AGAIN)}")


def is_safetensors(path: Path) -> bool:
    """Whether a file, whatever it is called, begins as safetensors does: with the length of a JSON header, and that."""
    with path.open("rb") as file:
        head = file.read(9)
    return len(head) == 9 and head[8:] == b"{" and int.from_bytes(head[:8], "little") < 100_000_000


def archive_names(path: Path) -> list[str] | None:
    """The names in a zip archive; empty if it is damaged, None if the file is no zip archive."""
    try:
        if not zipfile.is_zipfile(path):
            return None
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except Exception:  # damaged in some way, which is reported where it is read
        return []


def unpacked_bytes(path: Path) -> int:
    """What the entries of a zip archive say that they take together, unpacked; 0 if the file is no zip archive.

    PyTorch packs none of them.
    """
    if not zipfile.is_zipfile(path):
        return 0
    with zipfile.ZipFile(path) as archive:
        return sum(entry.file_size for entry in archive.infolist())


def _format_of(path: Path, head: bytes) -> str:
    """What a file is and what to do; empty if it may be a checkpoint."""
    if not head:
        return "empty; {again}"
    for beginning, what in BEGINNINGS:
        if head.startswith(beginning):
            return what
    if head[257:262] == b"ustar":
        return "a tar archive; unpack it and give what is in it"
    if head[4:8] == b"TFL3":
        return "a TensorFlow Lite model, not a checkpoint of PyTorch; {own}"
    if head.startswith(b"PK"):
        return _archive_format(path)
    if head[:1] == b"\x08" and head[1] < 32 and head[2:3] in (b"\x12", b"\x1a", b"\x22", b"\x3a", b"\x42"):
        kind = "a TensorFlow SavedModel" if head[1] == 1 else "an ONNX graph"
        return f"{kind}, not a checkpoint of PyTorch; give the checkpoint that it was made from"
    return _text_format(path, head)


def _archive_format(path: Path) -> str:
    names = archive_names(path)
    if names is None:
        return "incomplete: it begins as a file of torch.save and its end is missing; copy or download it again"
    inner = {name.split("/", 1)[-1] for name in names}
    if inner & {"data.pkl", "constants.pkl", "archive_format", "serialized_exported_program.json"} or not names:
        return ""  # PyTorch's; which kind is found out where it is read
    if all(name.endswith(".npy") for name in names):
        return "NumPy arrays (.npz), not a checkpoint of PyTorch; {own}"
    if any(name.endswith(".weights.h5") for name in names):
        return "a Keras model (.keras), not a checkpoint of PyTorch; {own}"
    checkpoints = [name for name in names if name.endswith((".pth", ".pt", ".ckpt", ".bin", ".safetensors"))]
    shown = ", ".join((checkpoints or names)[:3])
    return f"a zip archive ({_printable(shown)}), not a checkpoint; unpack it and give the checkpoint in it"


def _text_format(path: Path, head: bytes) -> str:
    text = head.decode("utf-8", "ignore").lstrip("\ufeff \t\r\n")
    start = text[:100].lower()
    if start.startswith(("<!doctype html", "<html", "<head", "<script")):
        return "a web page, not a checkpoint: a server sent it in place of the file; {again}"
    if start.startswith(("<?xml", "<error")):
        kind = "an OpenVINO model" if "<net " in text else "an XML document"
        return f"{kind}, not a checkpoint; {{again}}"
    if start.startswith(("{", "[")):
        return _json_format(path)
    printable = sum(byte in b"\t\n\r" or byte >= 32 for byte in head)
    if printable == len(head) and head.isascii():
        return "text, not a checkpoint; {again}"
    return ""


def _json_format(path: Path) -> str:
    if path.stat().st_size <= SMALL_BYTES:
        try:
            index = json.loads(path.read_bytes())
        except (ValueError, RecursionError):
            index = None
        if isinstance(index, dict) and isinstance(index.get("weight_map"), dict):
            parts = sorted({str(part) for part in index["weight_map"].values()})
            if len(parts) == 1:
                return f"the index of a checkpoint in one file; give that: {_printable(parts[0])}"
            shown = ", ".join(_printable(part) for part in parts[:2])
            return (
                f"the index of a checkpoint in {len(parts)} files ({shown}{', ...' if len(parts) > 2 else ''}), "
                "which holds no tensors; "
                "save them as one: model.save_pretrained(FOLDER, max_shard_size='10GB')"
            )
    return "JSON text, not a checkpoint; give the file with the tensors"


def _which_file(folder: Path) -> str:
    """Say which file of a folder to give."""
    if (folder / "saved_model.pb").exists():
        return "it is a TensorFlow SavedModel, not a checkpoint of PyTorch"
    known = ("model.safetensors", "pytorch_model.bin")
    found = [folder / name for name in known if (folder / name).is_file()]
    found += sorted(
        entry
        for entry in folder.iterdir()
        if entry.suffix in (".safetensors", ".pth", ".pt", ".ckpt", ".bin") and entry.is_file()
    )
    return f"give the checkpoint in it: {found[0]}" if found else "give the checkpoint in it"


def _printable(text: str) -> str:
    """A foreign file's text, printable and short; without braces, which `str.format` would fill in."""
    return (
        "".join(character if character.isprintable() else "?" for character in text[:100])
        .replace("{", "(")
        .replace("}", ")")
    )

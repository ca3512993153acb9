"""The readers of files, each through the function under its command: sample files, how they are spoilt, and the door."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from data_sets import LABELS, PIXELS, idx_from_array
from fuzz_formats import spoilt_archive, spoilt_array
from fuzz_mutate import spoilt_bytes, spoilt_json, spoilt_text
from made_results import entry, result
from PIL import Image

from calibration.annotations import with_labels
from calibration.classes import ModelClasses, labels_or_reason, match_source
from calibration.data import ImageSource, open_source
from calibration.histogram import Histogram
from calibration.synsets import synsets_from_file
from calibration.table import Provenance, arrays_from_lists, table_from_file, table_from_histograms
from exporter.models.labels import labels_from_path
from runtimes.benchmark.compare import compare_results
from runtimes.benchmark.result_file import json_from_result, result_from_file
from runtimes.picture_file import open_picture
from runtimes.preprocess import Preprocess

Spoil = Callable[..., bytes]
PREPROCESS = Preprocess(32, (28, 28), "bilinear", True, (0.5,), (0.25,))


@dataclass(frozen=True)
class Reader:
    """One kind of file.

    Attributes:
        file: the name of a spoilt one.
        read: opens it and uses all of it, as the command does.
        cases: how many are tried in each run of the tests.
        writes: whether `read` may write into the file's folder.
        named: what a message may name in place of the file.
        place: writes a case into a folder where it is not a file alone, and gives what `read` is given.
    """

    name: str
    file: str
    seeds: Sequence[bytes]
    spoil: Spoil
    read: Callable[[Path], object]
    cases: int = 60
    writes: bool = False
    named: str = ""
    place: Callable[[Path, bytes], Path] | None = None

    def put(self, folder: Path, data: bytes) -> Path:
        """Write a case into a folder: what `read` is given."""
        if self.place is not None:
            return self.place(folder, data)
        path = folder / self.file
        path.write_bytes(data)
        return path

    def case(self, number: int) -> bytes:
        """The file of a case."""
        draw = Random(f"{self.name} {number}")
        data = self.spoil(draw.choice(self.seeds), draw, self.seeds)
        return self.spoil(data, draw, self.seeds) if draw.random() < 0.1 else data


def text_readers() -> list[Reader]:
    names = [f"class {place}" for place in range(10)]
    ids = [f"n{place:08}" for place in range(10)]
    plain = "\n".join(names).encode()
    numbered = "\n".join(f"{place},{name}" for place, name in enumerate(names)).encode()
    colons = "\n".join(f"{place}: '{name}'" for place, name in enumerate(names)).encode()
    synsets = "\n".join(f"{one} {name}" for one, name in zip(ids, names, strict=True)).encode()
    of_ids = json.dumps({str(place): [one, names[place]] for place, one in enumerate(ids)}).encode()
    documents = [
        json.dumps(dict(enumerate(names))).encode(),
        json.dumps({name: place for place, name in enumerate(names)}).encode(),
        json.dumps(names).encode(),
        json.dumps({"id2label": dict(enumerate(names)), "classes": 3}).encode(),
        of_ids,
    ]
    python = [repr(dict(enumerate(names))).encode(), b"classes = ['a', 'b', ('c'), \"d\"]", repr(tuple(names)).encode()]
    shown = tuple(f"{'cats' if place % 2 else 'dogs'}/{place}.jpg" for place in range(6))
    source = ImageSource("shown", 6, lambda place: Image.new("L", (2, 2)), names=shown)
    pairs = "\n".join(f"{name} {place % 3}" for place, name in enumerate(shown)).encode()
    kaggle = b"ImageId,PredictionString\n" + b"\n".join(
        f"{place},{ids[place % 3]} 85 1 499 272".encode() for place in range(6)
    )

    def label(path: Path) -> None:
        found = with_labels(source, path)
        assert found.classes is not None
        for model in (ModelClasses(10), ModelClasses(10, tuple(names)), ModelClasses(10, None, tuple(ids))):
            labels_or_reason(found, model)
        match_source(found, ModelClasses(10, None, tuple(ids) if found.classes[0] in ids else None))

    return [
        Reader("labels.txt", "labels.txt", [plain, numbered, colons, synsets, *python], spoilt_text, labels_from_path),
        Reader("labels.json", "labels.json", [*documents, *python], spoilt_json, labels_from_path),
        Reader("synsets.txt", "synsets.txt", [synsets], spoilt_text, lambda path: synsets_from_file(path, 10)),
        Reader("class_index.json", "index.json", [of_ids], spoilt_json, lambda path: synsets_from_file(path, 10)),
        Reader(
            "data-labels", "val.txt", [pairs, kaggle, b"\n".join([b"1", b"2"] * 3)], spoilt_text, label, named="shown"
        ),
    ]


def json_readers() -> list[Reader]:
    histogram = Histogram()
    histogram.update(np.linspace(-3, 5, 4000, dtype=np.float32).reshape(4, -1), "x")
    provenance = Provenance("0" * 64, PREPROCESS, {"numpy": "2"})
    table = table_from_histograms({"x": histogram, "y": histogram}, provenance, images=4, fingerprint="1f")
    table = replace(
        table,
        calibrator="mse",
        factors={"x": [1.0, 2.0]},
        corrections={"mse": {"conv": [0.1, -0.1]}},
        repairs=["one"],
        float_nodes=["conv"],
    )
    measured = result(entry("onnxruntime"), entry("openvino"))

    def use_table(path: Path) -> None:
        found = table_from_file(path)
        for kind in ("mse", "entropy", "minmax"):
            found.thresholds(kind)
        arrays_from_lists(found.factors)
        for each in found.corrections.values():
            arrays_from_lists(each)
        found.json()

    def compare(path: Path) -> None:
        from exporter.verification.report.bench_lines import compare_lines

        found = result_from_file(path)
        list(compare_lines(compare_results(found, measured)))
        list(compare_lines(compare_results(measured, found)))

    return [
        Reader("calibration.json", "calibration.json", [table.json()], spoilt_json, use_table),
        Reader("bench result", "bench.json", [json_from_result(measured)], spoilt_json, compare, named="two results"),
    ]


def array_readers() -> list[Reader]:
    def saved(array: Any) -> bytes:
        buffer = io.BytesIO()
        np.save(buffer, array)
        return buffer.getvalue()

    def zipped(*, packed: bool = False, **arrays: Any) -> bytes:
        buffer = io.BytesIO()
        (np.savez_compressed if packed else np.savez)(buffer, **arrays)
        return buffer.getvalue()

    archives = [zipped(images=PIXELS, labels=LABELS), zipped(packed=True, images=PIXELS[..., 0], labels=LABELS)]
    plain = idx_from_array(PIXELS[..., 0])

    def look(path: Path) -> None:
        source = open_source(str(path))
        labels_or_reason(source, ModelClasses(3))
        for place in range(min(source.count, 3)):
            PREPROCESS(source.picture(place))

    return [
        Reader("data.npz", "data.npz", archives, spoilt_archive(lambda name: spoilt_array), look),
        Reader("data.npy", "data.npy", [saved(PIXELS), saved(PIXELS[..., 0])], spoilt_array, look),
        Reader("IDX", "images-idx3-ubyte", [plain, gzip.compress(plain, mtime=0)], spoilt_bytes, look),
        Reader("picture.npy", "picture.npy", [saved(PIXELS[0]), saved(PIXELS[0, ..., 0])], spoilt_array, open_and_use),
    ]


def open_and_use(path: Path) -> None:
    """Read a picture, and prepare it for a grey model."""
    PREPROCESS(open_picture(path))


def picture_readers() -> list[Reader]:
    noise = np.random.default_rng(3).integers(0, 256, (24, 40, 3), np.uint8)
    colour, grey = Image.fromarray(noise), Image.fromarray(noise[..., 0])
    exif = Image.Exif()
    exif[0x0112] = 6

    def saved(image: Image.Image, form: str, **options: Any) -> bytes:
        buffer = io.BytesIO()
        image.save(buffer, form, **options)
        return buffer.getvalue()

    deep = Image.fromarray(noise[..., 0].astype(np.uint16) * 257)
    forms: dict[str, list[bytes]] = {
        "jpeg": [
            saved(colour, "JPEG", exif=exif),
            saved(grey, "JPEG", progressive=True),
            saved(colour.convert("CMYK"), "JPEG"),
            saved(colour, "MPO", save_all=True, append_images=[colour]),
        ],
        "png": [
            saved(colour, "PNG"),
            saved(colour.convert("P"), "PNG", transparency=3),
            saved(deep, "PNG"),
            saved(colour.convert("RGBA"), "PNG"),
            saved(colour, "PNG", save_all=True, append_images=[colour.rotate(90)]),
        ],
        "webp": [
            saved(colour, "WEBP"),
            saved(colour, "WEBP", lossless=True, exif=exif),
            saved(colour, "WEBP", save_all=True, append_images=[colour]),
        ],
        "tiff": [
            saved(colour, "TIFF", compression=one) for one in (None, "tiff_lzw", "jpeg", "packbits", "tiff_deflate")
        ]
        + [saved(deep, "TIFF"), saved(grey.convert("1"), "TIFF", compression="group4")],
        "bmp": [saved(colour, "BMP"), saved(grey, "BMP"), saved(colour.convert("P"), "BMP"), saved(colour, "DIB")],
        "ppm": [
            saved(colour, "PPM"),
            b"P2 3 2 255\n1 2 3\n4 5 6\n",
            b"P4 9 2\n\x01\x02\x03\x04",
            b"P6 2 1 65535\n" + bytes(12),
        ],
        "gif": [
            saved(colour.convert("P"), "GIF"),
            saved(colour, "GIF", save_all=True, append_images=[colour.rotate(9)]),
        ],
        "jp2": [saved(colour, "JPEG2000"), saved(grey, "JPEG2000", no_jp2=True)],
        "avif": [saved(colour, "AVIF")],
    }
    return [
        Reader(f"picture {form}", f"picture.{form}", seeds, spoilt_bytes, open_and_use, 50)
        for form, seeds in forms.items()
    ]

"""The TensorRT versions that a file may be for, and what differs between them for an ONNX file."""

from __future__ import annotations

from dataclasses import dataclass

from runtimes.errors import UnknownName


@dataclass(frozen=True)
class TensorRtVersion:
    """One version.

    Attributes:
        name: as `--target-trt` takes it.
        text: for messages.
        newest_opset: the newest that its parser is documented for; parsers do not check it, nor the IR version.
        has_plugins: whether it has the operators of `exporter.lowering.qdq.refusals.PLUGINS`.
        two_types: the types that a scale of QuantizeLinear may have where its input has another.
        dla: whether its release for Jetson runs on DLA.
        qdq_on_dla: whether Q/DQ pairs run there.
        seen: whether what is said of it was seen on its parser and builder; else it is NVIDIA's documentation, and
            what TensorRT-RTX's parser, of the same source, does.
        where: what it comes with.
    """

    name: str
    text: str
    newest_opset: int
    has_plugins: bool = True
    two_types: tuple[str, ...] = ("FLOAT",)
    dla: bool = False
    qdq_on_dla: bool = False
    seen: bool = False
    where: str = ""


OLDEST_OPSET = 9
"""From which on every parser is documented."""
VERSIONS = {
    one.name: one
    for one in (
        TensorRtVersion("10.3", "TensorRT 10.3", 20, two_types=(), dla=True, where="JetPack 6.2"),
        TensorRtVersion("10.16", "TensorRT 10.16", 24, where="JetPack 7.2"),
        TensorRtVersion("11.4", "TensorRT 11.4", 25, dla=True, qdq_on_dla=True, where="JetPack 7.2.2 and newer"),
        TensorRtVersion(
            "rtx",
            "TensorRT-RTX 1.7",
            27,
            has_plugins=False,
            two_types=("FLOAT", "FLOAT16", "BFLOAT16"),
            seen=True,
            where="GeForce and RTX GPUs",
        ),
    )
}


def choose_versions(name: str | None) -> tuple[TensorRtVersion, ...]:
    """The version of this name; all of them for None, so that a file is judged by what every one of them takes.

    Raises:
        UnknownName: there is no such version.
    """
    if name is None:
        return tuple(VERSIONS.values())
    if name not in VERSIONS:
        raise UnknownName("TensorRT version", name, VERSIONS)
    return (VERSIONS[name],)


def versions_text(versions: tuple[TensorRtVersion, ...]) -> str:
    """Versions for people: `TensorRT 10.3 to 11.4 and TensorRT-RTX 1.7`."""
    if len(versions) == len(VERSIONS):
        return "TensorRT 10.3 to 11.4 and TensorRT-RTX 1.7"
    return ", ".join(one.text for one in versions)

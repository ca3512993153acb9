"""Record TensorRT's log: the only place where it says why something failed."""

from __future__ import annotations

import functools
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import tensorrt as trt

ERROR = 1
"""Severities count up from INTERNAL_ERROR = 0; above ERROR are WARNING, INFO and VERBOSE."""
NOISE = re.compile(
    # [graph.cpp::parse::12] IBuilder::build: Error Code 4:
    r"^(\[[^\]]*\]\s*)*(I\w+::\w+: )?(Error Code \d+: )?(Invalid Node - \S+ )?"
    r"|\s*\b[Ii]n \S+ at \S+?:\d+"  # places in TensorRT's own sources
)
REMEDIES = (
    (
        r"has type Int32 but must have type",
        "it has INT32-quantized biases (onnxruntime's default); export it with resnet-export --int8",
    ),
    (r"[Nn]on-zero zero point", "it is quantized asymmetrically; export it with resnet-export --int8"),
    (r"QLinearConv|QLinear\w+", "it is in QOperator format; export it with resnet-export --int8"),
    (r"must be of same type", "its types are mixed; export it again with resnet-export"),
    (
        r"[Oo]ut ?[Oo]f ?[Mm]emory|OutOfMemory|insufficient memory|[Cc]ould not allocate|MemoryAllocation",
        "allow less with --workspace MIB, and close what else uses the GPU",
    ),
    (
        r"CUDA initialization failure|cudaError(_t)?:? ?35|InsufficientDriver|driver version is insufficient",
        "it needs an NVIDIA driver that is new enough",
    ),
    (
        r"[Uu]nsupported SM|not support this compute capability|unsupported compute capability",
        "this TensorRT does not know this GPU; install a version that does",
    ),
    (
        r"no optimization profile|profile \d+ has min|don't match kMIN",
        "the batch range does not fit the graph; export it again with --batch MIN:OPT:MAX",
    ),
    (r"opset", "this TensorRT does not know the graph's opset; update it, or export in another precision"),
)


@dataclass(eq=False)  # each is one of its own: two that are still empty are not the same
class Recording:
    """What TensorRT logged during a block, as (severity, message).

    Attributes:
        lines: from any thread; a builder uses several.
        own: from the thread that records.
    """

    lines: list[tuple[int, str]] = field(default_factory=list)
    own: list[tuple[int, str]] = field(default_factory=list)

    @property
    def errors(self) -> list[str]:
        """Error messages, each once and in one line, without places in TensorRT's sources."""
        return _errors(self.lines)

    @property
    def reason(self) -> str:
        """The first errors in one line, with a remedy if one is known."""
        return _reason(self.errors)

    @property
    def own_reason(self) -> str:
        """The reason by the recording thread's own errors, while other threads make calls of their own."""
        return _reason(_errors(self.own) or self.errors)

    @property
    def text(self) -> str:
        return "\n".join(message for _, message in self.lines)


def _errors(lines: list[tuple[int, str]]) -> list[str]:
    return list(dict.fromkeys(readable_message(message) for severity, message in lines if severity <= ERROR))


def _reason(errors: list[str]) -> str:
    said = "; ".join(errors[:3]) or "TensorRT gave no reason"
    remedy = remedy_for(said)
    return f"{said}; {remedy}" if remedy else said


def readable_message(message: str) -> str:
    """A message of TensorRT in one line, without places in its sources."""
    return " ".join(NOISE.sub("", " ".join(message.split())).split())


def remedy_for(message: str) -> str | None:
    """What to do about an error of TensorRT, if it is a known one."""
    return next((remedy for pattern, remedy in REMEDIES if re.search(pattern, message)), None)


class Log:
    """Passes every logged line to the recordings that are running."""

    def __init__(self, logger: trt.ILogger) -> None:
        self.logger = logger
        self._recordings: list[tuple[int, Recording]] = []
        """Each with the thread that records."""

    def add(self, severity: int, message: str) -> None:
        here = threading.get_ident()
        for thread, recording in tuple(self._recordings):  # other threads begin and end theirs meanwhile
            recording.lines.append((severity, message))
            if thread == here:
                recording.own.append((severity, message))

    @contextmanager
    def recording(self) -> Iterator[Recording]:
        """Record what any thread logs during the block."""
        entry = threading.get_ident(), Recording()
        self._recordings.append(entry)
        try:
            yield entry[1]
        finally:
            self._recordings.remove(entry)


@functools.cache
def log_of(api: Any) -> Log:
    """The process's one log of `tensorrt` or `tensorrt_rtx`: the library keeps the first logger and ignores all
    others."""

    class Logger(api.ILogger):  # type: ignore[misc]  # which library it is, is known at run time alone
        def __init__(self) -> None:
            api.ILogger.__init__(self)

        def log(self, severity: trt.ILogger.Severity, message: str) -> None:
            log.add(int(severity), message)

    log = Log(Logger())
    return log

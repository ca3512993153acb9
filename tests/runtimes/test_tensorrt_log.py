"""What TensorRT's log lines become for people: one line, no places in its sources, and what to do."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import tensorrt_rtx

from runtimes.nvidia.log import ERROR, Recording, log_of, readable_message, remedy_for

WARNING = 2
PARSER = (
    "[graph.cpp::parseNode::123] Invalid Node - fc.bias_DequantizeLinear\n"
    "input has type Int32 but must have type FP8, FP4, Int4, Int8, or UInt8"
)


@pytest.mark.parametrize(
    ("said", "remedy"),
    [
        (PARSER, "INT32-quantized biases"),
        (
            "Non-zero zero point is not supported. Please set kENABLE_UINT8_AND_ASYMMETRIC_QUANTIZATION_DLA",
            "quantized asymmetrically",
        ),
        (
            "In node 3 with name: conv and operator: QLinearConv (checkFallbackPluginImporter): UNSUPPORTED_NODE",
            "QOperator format",
        ),
        (
            "IConvolutionLayer `input` and `bias` must be of same type. "
            "`input` is of type Float but `bias` is of type Half.",
            "types are mixed",
        ),
        (
            "[defaultAllocator.cpp::allocate::31] Error Code 1: Cuda Runtime (out of memory)",
            "allow less with --workspace MIB",
        ),
        (
            "IBuilder::buildSerializedNetwork: Error Code 4: "
            "Internal Error (Could not find any implementation due to insufficient memory)",
            "--workspace",
        ),
        ("CUDA initialization failure with error: 35. Please check your CUDA installation", "NVIDIA driver"),
        (
            "Unable to determine GPU memory usage: CUDA driver version is insufficient for CUDA runtime version",
            "NVIDIA driver",
        ),
        ("TensorRT-RTX does not support this compute capability", "does not know this GPU"),
        (
            "Dimension mismatch for tensor input and profile 0. At dimension axis 2, profile 0 has min=128",
            "--batch MIN:OPT:MAX",
        ),
        ("Network has dynamic or shape inputs, but no optimization profile has been defined", "--batch MIN:OPT:MAX"),
    ],
)
def test_known_errors_have_their_remedy(said: str, remedy: str) -> None:
    assert remedy in Recording([(ERROR, said)]).reason


def test_a_message_is_one_line_without_places_in_tensorrts_sources() -> None:
    assert readable_message(PARSER) == "input has type Int32 but must have type FP8, FP4, Int4, Int8, or UInt8"
    assert readable_message(
        "IBuilder::build: Error Code 4: "
        "API Usage Error (Bad dimensions. In operator() at /_src/optimizer/api/network.cpp:4067)"
    ) == ("API Usage Error (Bad dimensions.)")


def test_only_errors_are_reasons_and_each_is_told_once() -> None:
    recording = Recording([(WARNING, "slow"), (ERROR, "broken"), (ERROR, "broken"), (0, "worse")])
    assert recording.errors == ["broken", "worse"]
    assert recording.reason == "broken; worse"
    assert Recording().reason == "TensorRT gave no reason"
    assert remedy_for("something new") is None


def test_there_is_one_logger_and_a_recording_ends_with_its_block() -> None:
    log = log_of(tensorrt_rtx)
    assert log_of(tensorrt_rtx) is log
    with log.recording() as outer:
        log.logger.log(tensorrt_rtx.ILogger.Severity.ERROR, "first")
        with log.recording() as inner:
            log.logger.log(tensorrt_rtx.ILogger.Severity.ERROR, "second")
    log.logger.log(tensorrt_rtx.ILogger.Severity.ERROR, "third")
    assert (outer.errors, inner.errors) == (["first", "second"], ["second"])


def test_a_recording_that_ends_leaves_another_that_is_as_empty_alone() -> None:
    log = log_of(tensorrt_rtx)
    with log.recording() as outer:
        with log.recording() as inner:
            pass
        log.logger.log(tensorrt_rtx.ILogger.Severity.ERROR, "told to the one that goes on")
    assert (outer.errors, inner.errors) == (["told to the one that goes on"], [])


def test_two_threads_at_once_are_told_each_its_own_reason() -> None:
    log, both = log_of(tensorrt_rtx), threading.Barrier(2, timeout=60)

    def fail(name: str) -> tuple[str, str]:
        with log.recording() as recording:
            both.wait()  # both record
            log.logger.log(tensorrt_rtx.ILogger.Severity.ERROR, name)
            both.wait()  # both have failed
            return recording.own_reason, recording.reason

    with ThreadPoolExecutor(2) as pool:
        told = dict(zip("ab", pool.map(fail, "ab"), strict=True))
    assert {name: own for name, (own, _) in told.items()} == {"a": "a", "b": "b"}
    assert all({*reason.split("; ")} == {"a", "b"} for _, reason in told.values())


def test_a_reason_that_another_thread_logs_is_not_lost() -> None:
    log = log_of(tensorrt_rtx)
    with log.recording() as recording, ThreadPoolExecutor(1) as pool:
        pool.submit(log.logger.log, tensorrt_rtx.ILogger.Severity.ERROR, "from the builder's thread").result()
    assert recording.reason == recording.own_reason == "from the builder's thread"

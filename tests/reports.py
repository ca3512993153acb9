"""The report's sections and pages of a check, for the tests of `report.html`."""

from __future__ import annotations

import html
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from conftest import TINY_BATCH, Made
from onnx import TensorProto, helper

from exporter.verification.report.page import html_from_sections
from exporter.verification.report.records import Section
from exporter.verification.report.sections import section_from_check
from exporter.verification.verdicts import BackendCheck, BundleCheck
from runtimes import Manifest
from runtimes.backends.onnxruntime import OnnxRuntime
from runtimes.parity.budget import Budget
from runtimes.parity.evidence import Answers, Evidence, Terms, compare_backend, judge


@pytest.fixture(name="features", scope="module")
def features_fixture(manifest: Manifest) -> BundleCheck:
    """Two outputs of which the second is a little off."""
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 2]) for name in ("input", "layer1", "layer2")
    ]
    nodes = [helper.make_node("Identity", ["input"], ["layer1"]), helper.make_node("Relu", ["input"], ["layer2"])]
    model = helper.make_model(
        helper.make_graph(nodes, "features", values[:1], values[1:]),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=9,
    )
    inputs = np.linspace(1, 2, 16, dtype=np.float32).reshape(8, 2)
    budget = Budget(0.01, max_relative_error=0.01)
    with OnnxRuntime.from_bytes(model.SerializeToString()) as runtime:
        answer = compare_backend(
            Evidence(inputs, {"layer1": inputs, "layer2": inputs * np.float32(1.004)}),
            "onnxruntime",
            runtime,
            budget,
            TINY_BATCH,
        )
    return checked(BackendCheck("onnxruntime", "ok", "", answer, 1.0), budget=budget)


def judged_again(made: Made, *, must_decide: bool) -> Made:
    """The check of 16 images without a flip, by a budget that takes 133 to be sure; where it must, that is a failure."""
    check, plan, evidence = made
    budget = Budget(0.01, min_agreement=0.98, confidence=0.95)
    outputs = dict(evidence.outputs)
    answer = judge(outputs, "onnxruntime", Answers(outputs, (1, 8)), Terms(budget, must_decide=must_decide))
    reason = ", ".join(limit.text for limit in answer.failing)
    backend = BackendCheck("onnxruntime", "undecided" if must_decide else "ok", reason, answer, 1.0)
    return replace(check, budget=budget, backends=(backend,)), plan, evidence


def checked(*backends: BackendCheck, budget: Budget, **changed: Any) -> BundleCheck:
    whole = BundleCheck("folder/tiny", "tiny", budget, "its golden inputs", 8, "FP32 PyTorch", backends)
    return replace(whole, **changed)


def section(made: Made) -> Section:
    return section_from_check(*made)


def page_of(*given: Section) -> str:
    return html_from_sections(given).decode()


def text_of(page: str) -> str:
    """What a reader sees, without the styles: tags away, spaces as one."""
    body = page[page.index("<body>") :]
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", body)))

"""Re-check a bundle on every installed backend, each in a process of its own: a library may crash.

`check_bundle` goes through the backends, and `_check_backend` starts the process of one. In it `_run_backend` opens the
runtime, feeds it and compares its answers with the reference's (`runtimes/parity/evidence.py`); images whose class
changed are found and counted in `runtimes/parity/flips.py`.
"""

from __future__ import annotations

import importlib
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from calibration.distributed.shards import Executor
from exporter.verification.answers import Facts, OpenModel, answers_of
from exporter.verification.bundle_diff import changes
from exporter.verification.inputs import CheckInputs, gather_inputs
from exporter.verification.own_process import Verdict, run_here, run_in_own_process
from exporter.verification.plan import CheckPlan
from exporter.verification.verdicts import BackendCheck, BundleCheck, check_from_answer, remarks_on, verdict_on
from runtimes._plugins import needed_for
from runtimes.errors import ResnetExportError
from runtimes.parity.budget import Budget
from runtimes.parity.budget_options import changed_budget
from runtimes.parity.evidence import Answers, BackendParity, Evidence, Terms, judge
from runtimes.progress import Progress, silent

if TYPE_CHECKING:
    from exporter.verification.blocks.findings import Bisection, Drift


class CheckResult(NamedTuple):
    """The verdicts on a bundle, and the evidence that they rest on."""

    check: BundleCheck
    evidence: Evidence


@dataclass(frozen=True)
class _Task:
    """What a backend's process is sent; `old_evidence` is of the bundle that is the reference, where there is one."""

    plan: CheckPlan
    backend: str
    budget: Budget
    evidence: Evidence
    old_evidence: Evidence | None


def check_bundle(
    plan: CheckPlan, say: Progress = silent, inputs: CheckInputs | None = None, executor: Executor | None = None
) -> CheckResult:
    """Run a bundle on each backend of the plan and hold the answers to the budget.

    Args:
        say: called as each step begins.
        inputs: what `gather_inputs` gave, where that is at hand already.
        executor: whose workers share the pictures of `data`; None runs each backend in a process of its own.

    Raises:
        ResnetExportError: the inputs cannot be gathered (see `gather_inputs`), or blocks cannot be followed.
        UnknownName, PlanError: a limit of the budget is not known, or out of range.
    """
    bundle = plan.bundle
    budget = changed_budget(bundle.manifest.budget, plan.budget)
    inputs = inputs or gather_inputs(plan, say, executor)
    evidence, pictures = inputs.evidence, inputs.pictures
    drift, bisection = _follow_blocks(plan, evidence, budget, say)
    found = []
    for backend in plan.backends:
        say(f"check {bundle.manifest.name} on {backend}")
        task = _Task(plan, backend, budget, evidence, inputs.old_evidence)
        found.append(_check_backend(task, plan.timeout_s, executor))
    for one in (bundle, plan.against):
        if one is not None:
            one.check_same()
    check = BundleCheck(
        bundle=str(bundle.folder),
        name=bundle.manifest.name,
        budget=budget,
        evidence="its golden inputs" if pictures is None else f"pictures of {pictures.source.name}",
        images=len(evidence.inputs),
        reference=_reference_text(plan),
        backends=tuple(found),
        image_names=pictures.names if pictures is not None else (),
        left_out=pictures.left_out if pictures is not None else (),
        no_accuracy=pictures.no_accuracy if pictures is not None else "",
        changes=changes(plan.against, bundle) if plan.against is not None else (),
        asked=plan.asked,
        drift=drift,
        bisection=bisection,
    )
    return CheckResult(replace(check, remarks=remarks_on(check, bundle.manifest)), evidence)


def _reference_text(plan: CheckPlan) -> str:
    old = plan.against
    return plan.bundle.manifest.reference_text if old is None else f"{old.manifest.name} in {old.folder}"


def failed_check(plan: CheckPlan, error: ResnetExportError) -> CheckResult:
    """The result that stands for a check that could not be made, because of `error`."""
    manifest = plan.bundle.manifest
    check = BundleCheck(
        bundle=str(plan.bundle.folder),
        name=manifest.name,
        budget=manifest.budget,
        evidence="nothing",
        images=0,
        reference="nothing",
        backends=(BackendCheck("check", "failed", str(error), None, 0.0),),
        asked=plan.asked,
    )
    return CheckResult(check, Evidence(np.zeros(0), {}))


def check_can_follow_blocks() -> None:
    """Refuse `blocks` and `bisect` where they cannot be done, before the long work.

    Raises:
        BackendUnavailable: a package that makes the FP32 graph is not installed.
    """
    with needed_for("following blocks", "pip install 'resnet-export[export]'"):
        importlib.import_module("exporter.verification.blocks.bisect")


def _check_backend(task: _Task, timeout_s: float | None, executor: Executor | None) -> BackendCheck:
    """Run a backend in a process of its own, or on an executor's workers, and say what became of it."""
    start = time.perf_counter()
    if executor is None:
        verdict, reason, ran = run_in_own_process(_run_backend, task, timeout_s=timeout_s)
    else:
        verdict, reason, ran = run_here(_run_backend, task, executor)
    seconds = round(time.perf_counter() - start, 3)
    if ran is None:
        return BackendCheck(task.backend, verdict, reason, None, seconds)
    kernels, promised = ran.facts.kernels, task.plan.bundle.manifest.kernels
    found = replace(check_from_answer(task.backend, ran.answer, seconds), details=ran.facts.details)
    if kernels is None or promised is None:
        return found
    missing = kernels.shortfall(promised)
    found = replace(found, kernels=kernels.beside(promised))
    return replace(found, verdict="failed", reason=missing) if missing and found.verdict == "ok" else found


class _Ran(NamedTuple):
    answer: BackendParity
    facts: Facts


def _run_backend(task: _Task, executor: Executor | None = None) -> tuple[Verdict, _Ran]:
    """In the backend's own process, or by an executor's workers: open the runtime, feed it, and compare its answers
    with the reference's."""
    plan, evidence, expected = task.plan, task.evidence, task.evidence.outputs
    if plan.against is not None and task.old_evidence is not None:
        expected = answers_of(OpenModel(plan.against, task.backend, task.old_evidence.inputs, plan), executor).outputs
    found = answers_of(OpenModel(plan.bundle, task.backend, evidence.inputs, plan, proves=True), executor)
    assert found.facts is not None
    terms = Terms(task.budget, must_decide=evidence.must_decide)
    answers = Answers(found.outputs, found.facts.batches, found.again)
    answer = judge(expected, task.backend, answers, terms, evidence.labels)
    return verdict_on(answer), _Ran(answer, found.facts)


def _follow_blocks(
    plan: CheckPlan, evidence: Evidence, budget: Budget, say: Progress
) -> tuple[Drift | None, Bisection | None]:
    if not plan.blocks and not plan.bisect:
        return None, None
    check_can_follow_blocks()
    from exporter.verification.blocks.bisect import bisect_blocks
    from exporter.verification.blocks.drift import MOST_IMAGES, drift_of_bundle

    drift, bisection, few = None, None, evidence.inputs[:MOST_IMAGES]
    if plan.blocks:
        say("follow the blocks")
        drift = drift_of_bundle(plan.bundle, few, budget)
    if plan.bisect:
        bisection = bisect_blocks(plan.bundle, few, evidence.outputs, budget, say)
    return drift, bisection

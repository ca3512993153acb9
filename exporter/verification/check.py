"""Re-check a bundle on every installed backend, each in a process of its own: a library may crash.

`check_bundle` goes through the backends, and `_check_backend` starts the process of one. In it `_run_backend` opens the
runtime, feeds it and compares its answers with the reference's (`runtimes/parity/evidence.py`); images whose class
changed are found and counted in `runtimes/parity/flips.py`.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from exporter.verification.bundle_diff import changes
from exporter.verification.own_process import Verdict, run_in_own_process
from exporter.verification.pictures import Pictures, inputs_from_pictures, open_pictures
from exporter.verification.verdicts import BackendCheck, BundleCheck
from runtimes._plugins import needed_for
from runtimes.bundle import Bundle
from runtimes.errors import BackendUnavailable, BadInput, BundleError, PlanError, ResnetExportError
from runtimes.kinds import check_kinds
from runtimes.manifest import Manifest
from runtimes.parity.budget import Budget
from runtimes.parity.compare import is_classifier
from runtimes.parity.evidence import Answered, Evidence, answered
from runtimes.parity.golden import fed_to, golden_evidence
from runtimes.progress import Progress, silent

if TYPE_CHECKING:
    from exporter.verification.blocks.findings import Bisection, Drift

REFERENCE = "pytorch"


@dataclass(frozen=True)
class CheckPlan:
    """One bundle to check.

    Attributes:
        backends: names of the backends to run.
        asked: they were named by the user, so that a missing one is an error; otherwise missing ones are skipped.
        budget: limits in place of the bundle's own, by name.
        data: images to check with, against the bundle's reference program (see `calibration.data.open_source`); None
            takes the golden inputs.
        images: how many of `data` at most.
        against: another bundle, whose answers on the same backend are the reference.
        timeout_s: seconds that a backend may take; None sets no limit.
        blocks: also measure the drift block by block (see `exporter.verification.blocks.drift`).
        bisect: also find the blocks whose return to FP32 mends a broken budget (see
            `exporter.verification.blocks.bisect`).
        trust_engines: sha256 of engines that may be loaded though this machine did not build them.

    Raises:
        PlanError: the parts contradict each other, or one is out of range.
    """

    bundle: Bundle
    backends: Sequence[str]
    asked: bool = False
    budget: Mapping[str, float] = field(default_factory=dict)
    data: str | None = None
    images: int = 256
    against: Bundle | None = None
    timeout_s: float | None = None
    blocks: bool = False
    bisect: bool = False
    trust_engines: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_kinds(self)
        if self.images < 1:
            raise PlanError(f"expected at least 1 of the images, got {self.images}")
        if self.timeout_s is not None and not self.timeout_s > 0:  # nan too
            raise PlanError(f"expected a timeout of more than 0 seconds, got {self.timeout_s:g}; leave it out for none")
        if self.bisect and self.against is not None:
            raise PlanError(
                "--bisect returns blocks to the bundle's own FP32 program, which --against has nothing to do with; "
                "leave one of them out"
            )
        if self.bisect and self.bundle.manifest.precision == "fp32":
            raise PlanError(f"--bisect returns blocks to FP32, and {self.bundle.folder} is all FP32; leave it out")


@dataclass(frozen=True)
class CheckInputs:
    """What every backend is fed, and what its answers are compared with.

    Attributes:
        evidence: the inputs, and the reference's outputs for them; none yet where another bundle is the reference.
        pictures: where the inputs are from; None for golden ones.
        old_evidence: what the other bundle is fed; None where there is no other.
    """

    evidence: Evidence
    pictures: Pictures | None
    old_evidence: Evidence | None


class CheckResult(NamedTuple):
    """The verdicts on a bundle, and the evidence that they rest on."""

    check: BundleCheck
    evidence: Evidence


@dataclass(frozen=True)
class _Task:
    """What a backend's process is sent; `old` is the bundle that is the reference, where there is one."""

    bundle: Bundle
    backend: str
    budget: Budget
    evidence: Evidence
    old: Bundle | None
    old_evidence: Evidence | None
    trust_engines: tuple[str, ...]


def check_bundle(plan: CheckPlan, say: Progress = silent, inputs: CheckInputs | None = None) -> CheckResult:
    """Run a bundle on each backend of the plan and hold the answers to the budget.

    Args:
        say: called as each step begins.
        inputs: what `gather_inputs` gave, where that is at hand already.

    Raises:
        ResnetExportError: the inputs cannot be gathered (see `gather_inputs`), or blocks cannot be followed.
        UnknownName, PlanError: a limit of the budget is not known, or out of range.
    """
    bundle = plan.bundle
    budget = bundle.manifest.parity.budget.changed(plan.budget)
    inputs = inputs or gather_inputs(plan, say)
    evidence, pictures = inputs.evidence, inputs.pictures
    drift, bisection = _follow_blocks(plan, evidence, budget, say)
    found = []
    for backend in plan.backends:
        say(f"check {bundle.manifest.name} on {backend}")
        task = _Task(bundle, backend, budget, evidence, plan.against, inputs.old_evidence, plan.trust_engines)
        found.append(_check_backend(task, plan.timeout_s))
    check = BundleCheck(
        bundle=str(bundle.folder),
        name=bundle.manifest.name,
        budget=budget,
        evidence="its golden inputs" if pictures is None else f"pictures of {pictures.source.name}",
        images=len(evidence.inputs),
        reference="FP32 PyTorch" if plan.against is None else f"{plan.against.manifest.name} in {plan.against.folder}",
        backends=tuple(found),
        image_names=pictures.names if pictures is not None else (),
        left_out=pictures.left_out if pictures is not None else (),
        no_accuracy=pictures.no_accuracy if pictures is not None else "",
        changes=changes(plan.against, bundle) if plan.against is not None else (),
        asked=plan.asked,
        drift=drift,
        bisection=bisection,
    )
    return CheckResult(check, evidence)


def gather_inputs(plan: CheckPlan, say: Progress = silent) -> CheckInputs:
    """The inputs of a check and the reference's outputs: the same for all backends, so several checks can share them.

    Raises:
        BundleError: the golden file is not the model's, or there is no reference program for `data`.
        BadInput: `data` cannot be read, or the two bundles do not take or give the same.
        BackendUnavailable: `data` needs PyTorch, which is not installed.
        PlanError: a limit that was asked for does not apply.
    """
    pictures = open_pictures(plan.bundle, plan.data, plan.images) if plan.data is not None else None
    _check_limits_apply(plan, pictures)
    evidence = _evidence(plan, pictures, say)
    old_evidence = None if plan.against is None else _old_evidence(plan.against, plan, evidence, pictures)
    return CheckInputs(evidence, pictures, old_evidence)


def failed_check(plan: CheckPlan, error: ResnetExportError) -> CheckResult:
    """The result that stands for a check that could not be made, because of `error`."""
    manifest = plan.bundle.manifest
    check = BundleCheck(
        bundle=str(plan.bundle.folder),
        name=manifest.name,
        budget=manifest.parity.budget,
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


def _check_backend(task: _Task, timeout_s: float | None) -> BackendCheck:
    """Run a backend in a process of its own, and say what became of it."""
    start = time.perf_counter()
    verdict, reason, answer = run_in_own_process(_run_backend, task, timeout_s=timeout_s)
    if answer is not None:
        reason = ", ".join(limit.text for limit in answer.limits if not limit.ok)
    return BackendCheck(task.backend, verdict, reason, answer, round(time.perf_counter() - start, 3))


def _run_backend(task: _Task) -> tuple[Verdict, Answered]:
    """In the backend's own process: open the runtime, feed it, and compare its answers with the reference's."""
    from runtimes._open import backend_class, open_runtime

    backend_class(task.backend).check_here()
    evidence = task.evidence
    if task.old is not None and task.old_evidence is not None:
        evidence = replace(evidence, outputs=_outputs(task.old, task.backend, task.old_evidence, task.trust_engines))
    with open_runtime(task.bundle, task.backend, trust_engine=task.trust_engines) as model:
        fed = fed_to(model, evidence, task.bundle)
        answer = answered(fed, task.backend, model, task.budget, task.bundle.manifest.batch)
    return "ok" if answer.ok else "out of budget", answer


def _run_reference(bundle: Bundle, evidence: Evidence) -> tuple[Verdict, dict[str, Any]]:
    """In a process of its own: the reference program's outputs."""
    return "ok", _outputs(bundle, REFERENCE, evidence)


def _outputs(bundle: Bundle, backend: str, evidence: Evidence, trust_engines: tuple[str, ...] = ()) -> dict[str, Any]:
    from runtimes._open import open_runtime

    with open_runtime(bundle, backend, trust_engine=trust_engines) as model:
        fed = fed_to(model, evidence, bundle)
        return model.run({model.inputs[0].name: fed.inputs})


def _follow_blocks(
    plan: CheckPlan, evidence: Evidence, budget: Budget, say: Progress
) -> tuple[Drift | None, Bisection | None]:
    if not plan.blocks and not plan.bisect:
        return None, None
    check_can_follow_blocks()
    from exporter.verification.blocks.bisect import bisect_blocks
    from exporter.verification.blocks.drift import drift_of_bundle

    drift, bisection = None, None
    if plan.blocks:
        say("follow the blocks")
        drift = drift_of_bundle(plan.bundle, evidence.inputs, budget)
    if plan.bisect:
        bisection = bisect_blocks(plan.bundle, evidence.inputs, evidence.outputs, budget, say)
    return drift, bisection


def _evidence(plan: CheckPlan, pictures: Pictures | None, say: Progress) -> Evidence:
    """The golden inputs and outputs; or pictures, and what the reference program answers to them."""
    if pictures is None:
        return golden_evidence(plan.bundle)
    inputs = inputs_from_pictures(plan.bundle, pictures)
    evidence = Evidence(inputs, {}, pictures.labels, judge_accuracy="max_accuracy_drop" in plan.budget)
    if plan.against is not None:
        return evidence  # the other bundle's answers are the reference
    say(f"run {REFERENCE} on {len(inputs)} images")
    verdict, reason, outputs = run_in_own_process(_run_reference, plan.bundle, evidence, timeout_s=plan.timeout_s)
    if verdict == "not here":
        raise BackendUnavailable(f"--data is held against the bundle's reference program: {reason}")
    if verdict != "ok":
        raise BundleError(f"{plan.bundle.folder}: its reference program gave no answer: {reason}")
    return replace(evidence, outputs=outputs)


def _old_evidence(old: Bundle, plan: CheckPlan, evidence: Evidence, pictures: Pictures | None) -> Evidence:
    """What the other bundle is fed: the same pictures, or the same arrays.

    Raises:
        BadInput: it does not take them, or has other outputs.
    """
    mine, other = plan.bundle.manifest, old.manifest
    if _output_forms(mine) != _output_forms(other):
        raise BadInput(
            f"{old.folder} gives other outputs than {plan.bundle.folder}, so there is nothing to compare; "
            "give a bundle of the same kind"
        )
    if pictures is not None:
        return replace(evidence, inputs=inputs_from_pictures(old, pictures))
    if _input_forms(mine) != _input_forms(other):
        raise BadInput(
            f"{old.folder} takes other inputs than {plan.bundle.folder}; "
            "give --data with pictures, which each prepares in its own way"
        )
    return evidence


def _output_forms(manifest: Manifest) -> list[tuple[str, Any]]:
    """Names and shapes, but for the batch."""
    return [(spec.name, spec.shape[1:]) for spec in manifest.outputs]


def _input_forms(manifest: Manifest) -> list[tuple[str, Any]]:
    """Types and shapes, but for the batch."""
    return [(spec.dtype, spec.shape[1:]) for spec in manifest.inputs]


def _check_limits_apply(plan: CheckPlan, pictures: Pictures | None) -> None:
    """Refuse limits that were asked for and cannot be judged.

    Raises:
        PlanError: one does not apply to this bundle, or to these pictures.
    """
    folder, manifest = plan.bundle.folder, plan.bundle.manifest
    if "max_accuracy_drop" in plan.budget and (pictures is None or pictures.labels is None):
        why = f": {pictures.no_accuracy}" if pictures is not None and pictures.no_accuracy else ""
        raise PlanError(
            f"max_accuracy_drop needs pictures whose classes are the model's{why}; "
            "give such --data, or leave the limit out"
        )
    if "min_agreement" in plan.budget and not is_classifier(spec.name for spec in manifest.outputs):
        raise PlanError(f"min_agreement is about classes, and {folder} gives features; leave the limit out")
    if "min_cosine" in plan.budget and all(spec.shape[1:] == (1,) for spec in manifest.outputs):
        raise PlanError(
            f"min_cosine is about the direction of several values, and {folder} gives a single one; leave the limit out"
        )
    if "max_batch_difference" in plan.budget and manifest.batch.is_static:
        raise PlanError(f"max_batch_difference is about several batch sizes, and {folder} has one; leave the limit out")

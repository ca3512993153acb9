"""Does a bundle still say what it was proven to say, on every backend that is here? Each answers in a process of its own: one may crash."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from exporter.verification.bundle_diff import changes
from exporter.verification.own_process import Verdict, run_in_own_process
from exporter.verification.pictures import Pictures, inputs_from_pictures, open_pictures
from exporter.verification.verdicts import BackendCheck, BundleCheck
from runtimes._plugins import needed_for
from runtimes.bundle import Bundle
from runtimes.errors import BackendUnavailable, BadInput, BundleError, PlanError, ResnetExportError
from runtimes.kinds import check_kinds
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
        backends: what is to answer.
        asked: they were asked for by name, so that one which is not here is an error; otherwise those that are here answer.
        budget: limits in place of the bundle's own, by name.
        data: pictures to check with, against the bundle's reference program; None takes its golden inputs.
        images: at most that many of the pictures.
        against: another bundle, whose answers on the same backend are the reference.
        timeout_s: how long a backend may take to answer; None waits however long it takes.
        blocks: follow the values block by block, too (see `exporter.verification.blocks.drift`).
        bisect: find the blocks whose return to FP32 mends a broken budget (see `exporter.verification.blocks.bisect`).
        trust_engines: sha256 of engines that may be loaded though this machine did not build them.
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
                "--bisect returns blocks to the bundle's own FP32 program, which --against has nothing to do with; leave one of them out"
            )
        if self.bisect and self.bundle.manifest.precision == "fp32":
            raise PlanError(f"--bisect returns blocks to FP32, and {self.bundle.folder} is all FP32; leave it out")


@dataclass(frozen=True)
class CheckInputs:
    """What every backend is asked.

    Attributes:
        evidence: inputs and the answers that count as right; those are still missing where another bundle's are.
        pictures: where the inputs are from; None for golden ones.
        old_evidence: what the other bundle is fed.
    """

    evidence: Evidence
    pictures: Pictures | None
    old_evidence: Evidence | None


@dataclass(frozen=True)
class _Task:
    """What a backend's process is given."""

    bundle: Bundle
    backend: str
    budget: Budget
    evidence: Evidence
    old: Bundle | None
    old_evidence: Evidence | None
    trust_engines: tuple[str, ...]


def gather_inputs(plan: CheckPlan, say: Progress = silent) -> CheckInputs:
    """The same for all backends, so it can be put together once for several checks.

    Raises:
        BundleError: the golden file is not the model's, or there is no reference program for `data`.
        BadInput: `data` cannot be read, or the two bundles cannot be asked the same.
        BackendUnavailable: `data` needs PyTorch, which is not here.
        PlanError: a limit that was asked for does not apply.
    """
    pictures = open_pictures(plan.bundle, plan.data, plan.images) if plan.data is not None else None
    _check_judged(plan, pictures)
    evidence = _evidence(plan, pictures, say)
    return CheckInputs(
        evidence, pictures, _old_evidence(plan.against, plan, evidence, pictures) if plan.against is not None else None
    )


def check_bundle(
    plan: CheckPlan, say: Progress = silent, question: CheckInputs | None = None
) -> tuple[BundleCheck, Evidence]:
    """Ask each backend, what `question` holds if that is at hand already; returns the verdicts and what was asked.

    Raises:
        ResnetExportError: the question cannot be put together (see `gather_inputs`), or blocks cannot be followed.
        UnknownName, PlanError: of the budget.
    """
    bundle = plan.bundle
    budget = bundle.manifest.parity.budget.changed(plan.budget)
    question = question or gather_inputs(plan, say)
    evidence, pictures = question.evidence, question.pictures
    drift, bisection = _blockwise(plan, evidence, budget, say)
    found = []
    for backend in plan.backends:
        say(f"check {bundle.manifest.name} on {backend}")
        found.append(
            _checked(
                _Task(bundle, backend, budget, evidence, plan.against, question.old_evidence, plan.trust_engines),
                plan.timeout_s,
            )
        )
    return BundleCheck(
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
    ), evidence


def load_block_modules() -> tuple[ModuleType, ModuleType]:
    """`exporter.verification.blocks.drift` and `exporter.verification.blocks.bisect`; asked for before the work.

    Raises:
        BackendUnavailable: a package that makes the FP32 graph is not installed.
    """
    with needed_for("following blocks", "pip install 'resnet-export[export]'"):
        from exporter.verification.blocks import bisect, drift
    return drift, bisect


def _blockwise(
    plan: CheckPlan, evidence: Evidence, budget: Budget, say: Progress
) -> tuple[Drift | None, Bisection | None]:
    if not plan.blocks and not plan.bisect:
        return None, None
    drift, bisect = load_block_modules()
    followed, found = None, None
    if plan.blocks:
        say("follow the blocks")
        followed = drift.drift_of_bundle(plan.bundle, evidence.inputs, budget)
    if plan.bisect:
        found = bisect.bisect_blocks(plan.bundle, evidence.inputs, evidence.outputs, budget, say)
    return followed, found


def _evidence(plan: CheckPlan, pictures: Pictures | None, say: Progress) -> Evidence:
    if pictures is None:
        return golden_evidence(plan.bundle)
    evidence = Evidence(
        inputs_from_pictures(plan.bundle, pictures),
        {},
        pictures.labels,
        judge_accuracy="max_accuracy_drop" in plan.budget,
    )
    if plan.against is not None:
        return evidence  # the other bundle's answers are the reference
    say(f"run {REFERENCE} on {len(evidence.inputs)} images")
    verdict, reason, outputs = run_in_own_process(_reference, plan.bundle, evidence, timeout_s=plan.timeout_s)
    if verdict == "not here":
        raise BackendUnavailable(f"--data is held against the bundle's reference program: {reason}")
    if verdict != "ok":
        raise BundleError(f"{plan.bundle.folder}: its reference program gave no answer: {reason}")
    return replace(evidence, outputs=outputs)


def _old_evidence(old: Bundle, plan: CheckPlan, evidence: Evidence, pictures: Pictures | None) -> Evidence:
    """What the other bundle is fed: the same pictures, or the same arrays.

    Raises:
        BadInput: it does not take them, or answers with something else.
    """
    mine, other = plan.bundle.manifest, old.manifest
    if [(spec.name, spec.shape[1:]) for spec in mine.outputs] != [
        (spec.name, spec.shape[1:]) for spec in other.outputs
    ]:
        raise BadInput(
            f"{old.folder} gives other outputs than {plan.bundle.folder}, so there is nothing to compare; give a bundle of the same kind"
        )
    if pictures is not None:
        return replace(evidence, inputs=inputs_from_pictures(old, pictures))
    if [(spec.dtype, spec.shape[1:]) for spec in mine.inputs] != [
        (spec.dtype, spec.shape[1:]) for spec in other.inputs
    ]:
        raise BadInput(
            f"{old.folder} takes other inputs than {plan.bundle.folder}; give --data with pictures, which each prepares in its own way"
        )
    return evidence


def _checked(task: _Task, timeout_s: float | None) -> BackendCheck:
    start = time.perf_counter()
    verdict, reason, answer = run_in_own_process(_answer, task, timeout_s=timeout_s)
    if answer is not None:
        reason = ", ".join(limit.text for limit in answer.limits if not limit.ok)
    return BackendCheck(task.backend, verdict, reason, answer, round(time.perf_counter() - start, 3))


def _answer(task: _Task) -> tuple[Verdict, Answered]:
    """In a process of its own."""
    from runtimes._open import backend_class, open_runtime

    backend_class(task.backend).check_here()
    evidence = task.evidence
    if task.old is not None and task.old_evidence is not None:
        evidence = replace(evidence, outputs=_outputs(task.old, task.backend, task.old_evidence, task.trust_engines))
    with open_runtime(task.bundle, task.backend, trust_engine=task.trust_engines) as model:
        answer = answered(
            fed_to(model, evidence, task.bundle), task.backend, model, task.budget, task.bundle.manifest.batch
        )
    return "ok" if answer.ok else "out of budget", answer


def _reference(bundle: Bundle, evidence: Evidence) -> tuple[Verdict, dict[str, Any]]:
    """In a process of its own."""
    return "ok", _outputs(bundle, REFERENCE, evidence)


def _outputs(bundle: Bundle, backend: str, evidence: Evidence, trust_engines: tuple[str, ...] = ()) -> dict[str, Any]:
    from runtimes._open import open_runtime

    with open_runtime(bundle, backend, trust_engine=trust_engines) as model:
        fed = fed_to(model, evidence, bundle)
        return model.run({model.inputs[0].name: fed.inputs})


def _check_judged(plan: CheckPlan, pictures: Pictures | None) -> None:
    """Limits that were asked for are judged, or refused.

    Raises:
        PlanError: one does not apply to what is asked.
    """
    if "max_accuracy_drop" in plan.budget and (pictures is None or pictures.labels is None):
        why = f": {pictures.no_accuracy}" if pictures is not None and pictures.no_accuracy else ""
        raise PlanError(
            f"max_accuracy_drop needs pictures whose classes are the model's{why}; give such --data, or leave the limit out"
        )
    if "min_agreement" in plan.budget and not is_classifier(spec.name for spec in plan.bundle.manifest.outputs):
        raise PlanError(f"min_agreement is about classes, and {plan.bundle.folder} gives features; leave the limit out")
    if "min_cosine" in plan.budget and all(spec.shape[1:] == (1,) for spec in plan.bundle.manifest.outputs):
        raise PlanError(
            f"min_cosine is about the direction of several values, and {plan.bundle.folder} gives a single one; leave the limit out"
        )
    if "max_batch_difference" in plan.budget and plan.bundle.manifest.batch.is_static:
        raise PlanError(
            f"max_batch_difference is about several batch sizes, and {plan.bundle.folder} has one; leave the limit out"
        )


def failed_check(plan: CheckPlan, error: ResnetExportError) -> tuple[BundleCheck, Evidence]:
    """In place of what `check_bundle` returns, where it could not: nothing was asked."""
    manifest = plan.bundle.manifest
    nothing = BackendCheck("check", "failed", str(error), None, 0.0)
    check = BundleCheck(
        str(plan.bundle.folder),
        manifest.name,
        manifest.parity.budget,
        "nothing",
        0,
        "nothing",
        (nothing,),
        asked=plan.asked,
    )
    return check, Evidence(np.zeros(0), {})

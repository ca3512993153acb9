"""Gather what a check feeds to every backend, and the reference's outputs for it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from calibration.distributed.shards import Executor
from exporter.verification.answers import OpenModel, answers_of
from exporter.verification.own_process import Verdict, run_here, run_in_own_process
from exporter.verification.pictures import Pictures, inputs_from_pictures, open_pictures
from exporter.verification.plan import CheckPlan
from runtimes.bundle import Bundle
from runtimes.errors import BackendUnavailable, BadInput, BundleError, PlanError
from runtimes.manifest import Manifest
from runtimes.parity.compare import is_classifier
from runtimes.parity.evidence import Evidence
from runtimes.parity.golden import golden_evidence
from runtimes.printable import count_text
from runtimes.progress import Progress, silent


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


def gather_inputs(plan: CheckPlan, say: Progress = silent, executor: Executor | None = None) -> CheckInputs:
    """The inputs of a check and the reference's outputs: the same for all backends, so several checks can share them.

    Args:
        executor: runs the reference; None runs it in a process of its own.

    Raises:
        BundleError: the golden file is not the model's, or there is no reference program for `data`.
        BadInput: `data` cannot be read, or the two bundles do not take or give the same.
        BackendUnavailable: `data` needs PyTorch, which is not installed.
        PlanError: a limit that was asked for does not apply.
    """
    pictures = open_pictures(plan.bundle, plan.data, plan.images) if plan.data is not None else None
    _check_limits_apply(plan, pictures)
    evidence = _evidence(plan, pictures, say, executor)
    old_evidence = None if plan.against is None else _old_evidence(plan.against, plan, evidence, pictures)
    return CheckInputs(evidence, pictures, old_evidence)


def _evidence(plan: CheckPlan, pictures: Pictures | None, say: Progress, executor: Executor | None) -> Evidence:
    """The golden inputs and outputs; or pictures, and what the reference program answers to them."""
    if pictures is None:
        return golden_evidence(plan.bundle)
    inputs = inputs_from_pictures(plan.bundle, pictures)
    evidence = Evidence(inputs, {}, pictures.labels, must_decide=True)
    if plan.against is not None:
        return evidence  # the other bundle's answers are the reference
    say(f"run {plan.bundle.manifest.reference_text} on {count_text(len(inputs))}")
    if executor is None:
        verdict, reason, outputs = run_in_own_process(_run_reference, plan, evidence, timeout_s=plan.timeout_s)
    else:
        verdict, reason, outputs = run_here(_run_reference, plan, evidence, executor)
    if verdict == "not here":
        raise BackendUnavailable(f"--data is held against the bundle's reference: {reason}")
    if verdict != "ok":
        raise BundleError(f"{plan.bundle.folder}: its reference gave no answer: {reason}")
    return replace(evidence, outputs=outputs)


def _run_reference(
    plan: CheckPlan, evidence: Evidence, executor: Executor | None = None
) -> tuple[Verdict, dict[str, Any]]:
    """In a process of its own, or by an executor's workers: the reference's outputs."""
    return "ok", answers_of(OpenModel(plan.bundle, None, evidence.inputs, plan), executor).outputs


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

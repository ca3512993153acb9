"""The verdicts of a check: one for each backend, and the error that a command ends with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from exporter.verification.bundle_diff import Change
from exporter.verification.own_process import Verdict
from runtimes.board.jetpack import this_board
from runtimes.errors import BackendUnavailable, ExportError, ParityError, ResnetExportError
from runtimes.kernels import KernelCount
from runtimes.manifest import Manifest
from runtimes.parity.budget import RANDOM_WEIGHTS, Budget
from runtimes.parity.compare import ParityReport
from runtimes.parity.evidence import BackendParity
from runtimes.printable import count_text

if TYPE_CHECKING:
    from exporter.verification.blocks.findings import Bisection, Drift


@dataclass(frozen=True)
class BackendCheck:
    """The verdict on one backend.

    Attributes:
        reason: why the verdict is not `ok`, in one line; empty where it is.
        answer: what was measured; None where the backend gave no answer.
        seconds: what the backend's process took.
        kernels: what ran on integers; None where the bundle promises nothing of that, or the backend does not tell.
        details: what the backend says of how it runs, by name.
    """

    backend: str
    verdict: Verdict
    reason: str
    answer: BackendParity | None
    seconds: float
    kernels: KernelCount | None = None
    details: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class BundleCheck:
    """The verdict on one bundle.

    Attributes:
        bundle: its folder, as it was given.
        name: the one in its manifest.
        budget: the limits it was held to.
        evidence: what it was fed, in words.
        images: how many images that were.
        reference: whose answers count as right, in words.
        image_names: a name for each image; empty for golden inputs, which have none.
        left_out: what is wrong with each image that could not be read.
        no_accuracy: why accuracy is not measured on images that have classes; empty where it is.
        remarks: what else a reader of the verdict has to know, each in one line.
        changes: what differs from the bundle that is the reference; empty where none is.
        asked: the backends were named by the user, so that a missing one is an error.
        drift, bisection: None where they were not asked for.
    """

    bundle: str
    name: str
    budget: Budget
    evidence: str
    images: int
    reference: str
    backends: tuple[BackendCheck, ...]
    image_names: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    no_accuracy: str = ""
    remarks: tuple[str, ...] = ()
    changes: tuple[Change, ...] = ()
    asked: bool = False
    drift: Drift | None = None
    bisection: Bisection | None = None

    @property
    def ok(self) -> bool:
        """Is every backend within the budget?"""
        return self.problem is None

    @property
    def missing_backend_is_error(self) -> bool:
        """Is a missing backend an error? Where the user named the backends, or where none is here."""
        return self.asked or all(one.verdict == "not here" for one in self.backends)

    def image_text(self, place: int) -> str:
        """The name of the image at a place."""
        return self.image_names[place] if self.image_names else f"golden image {place}"

    @property
    def problem(self) -> ResnetExportError | None:
        """The error that a command ends with; None where there is none.

        In this order: the first broken budget; a backend that crashed or failed; a budget that is undecided; a missing
        backend that is an error.
        """
        for one in self.backends:
            if one.verdict == "out of budget" and one.answer is not None:
                return ParityError(f"{self.name}: {one.backend} is out of budget: {one.reason}", one.answer.report)
        for one in self.backends:
            if one.verdict in ("failed", "crashed"):
                return ExportError(f"{self.name}: {one.backend} {one.verdict}: {one.reason}")
        for one in self.backends:
            if one.verdict == "undecided" and one.answer is not None:
                said = f"{self.name} is undecided on {one.backend}: {one.reason}; {how_to_decide(one.answer)}"
                return ParityError(said, one.answer.report)
        missing = [one for one in self.backends if one.verdict == "not here"]
        if not self.asked and this_board() is not None:  # a Jetson has TensorRT, or should have
            missing.sort(key=lambda one: one.backend != "tensorrt")
        if missing and self.missing_backend_is_error:
            return BackendUnavailable(f"{self.name}: {missing[0].backend} cannot answer: {missing[0].reason}")
        return None


def distinct_names(names: Sequence[str]) -> list[str]:
    """The names, numbered (`resnet20-int8-1`) where several are the same."""
    return [
        name if names.count(name) == 1 else f"{name}-{names[: place + 1].count(name)}"
        for place, name in enumerate(names)
    ]


def verdict_on(answer: BackendParity) -> Verdict:
    """The verdict on a backend that answered."""
    if answer.ok:
        return "ok"
    return "undecided" if answer.verdict == "undecided" else "out of budget"


def check_from_answer(backend: str, answer: BackendParity, seconds: float = 0.0) -> BackendCheck:
    """The verdict on a backend that answered, with its reason."""
    reason = "; ".join(limit.text for limit in answer.failing)
    return BackendCheck(backend, verdict_on(answer), reason, answer, seconds)


def remarks_on(check: BundleCheck, manifest: Manifest) -> tuple[str, ...]:
    """What a reader of the verdict on a bundle has to know beside it, each in one line."""
    budget, answers = check.budget, [one.answer for one in check.backends if one.answer is not None]
    found = []
    if any(answer.ok and answer.verdict == "undecided" for answer in answers):
        found.append("golden inputs need not decide that; to have it decided, give pictures with --data")
    sizes = manifest.batch.proof_sizes
    for one in check.backends:
        if one.answer is not None and one.answer.report.batches != sizes:
            found.append(_sizes_remark(one.backend, one.answer.report.batches, sizes))
        if one.details:
            found.append(f"{one.backend}: {'; '.join(f'{name} {value}' for name, value in one.details.items())}")
    is_known = check.no_accuracy or any(answer.accuracy is not None for answer in answers)
    if budget.max_accuracy_drop is not None and answers and not is_known:
        found.append("the limit on accuracy was not judged: that takes pictures with labels")
    if manifest.model.weights.kind == "random" and budget.min_agreement is None and budget.max_accuracy_drop is None:
        found.append(RANDOM_WEIGHTS)
    return tuple(found)


def _sizes_remark(backend: str, sent: Sequence[int], proven: Sequence[int]) -> str:
    """That a backend, which takes other batches than the bundle, was not run at all of the bundle's sizes."""
    sent_text, proven_text = (", ".join(map(str, sizes)) for sizes in (sent, proven))
    limit = f"takes batches of {sent[0]}" if len(sent) == 1 else f"takes batches of {sent[0]} to {sent[-1]}"
    return f"{backend}: the server {limit}; it was run at batch {sent_text}, and not at the bundle's {proven_text}"


def how_to_decide(answer: BackendParity) -> str:
    """What to do about limits that the images leave undecided."""
    needed, images = answer.images_needed, answer.report.images
    if needed is None:
        return "set another limit, or judge the figures measured with --budget confidence=0"
    return f"give {count_text(needed - images, 'more picture')}, with --images {needed}"


def why_not_judged(limit: str, answer: BackendParity, no_accuracy: str = "") -> str:
    """Why a limit of the budget was not judged on this answer; `no_accuracy` as in `BundleCheck`."""
    if not answer.limits[0].ok:
        return f"{limit} has no meaning: {answer.limits[0].text}"
    if limit == "max_accuracy_drop":
        return f"max_accuracy_drop needs pictures with labels{f': {no_accuracy}' if no_accuracy else ''}"
    if limit == "max_batch_difference":
        return "max_batch_difference needs several batch sizes, and the model takes one"
    if limit == "min_cosine":
        return "min_cosine is about the direction of several values, and the model gives a single one"
    return f"{limit} is about classes, and this model gives features"


def merge_reports(check: BundleCheck) -> ParityReport | None:
    """The reports of all backends as one, with the batch sizes that any of them ran; None where none answered."""
    reports = [one.answer.report for one in check.backends if one.answer is not None]
    if not reports:
        return None
    compared = {name: measured for report in reports for name, measured in report.backends.items()}
    sizes = tuple(sorted({size for report in reports for size in report.batches}))
    return replace(reports[0], ok=all(report.ok for report in reports), batches=sizes, backends=compared)

"""Say why a bundle is refused, and what would help: more images, or a change that was tried and measured."""

from __future__ import annotations

from exporter.pipeline.first_step import Lowering, first_step_text
from exporter.pipeline.images import Proof
from exporter.pipeline.plan import ONNX
from exporter.pipeline.proof_images import ProofImages
from runtimes.parity.evidence import BackendParity
from runtimes.parity.intervals import look_sizes
from runtimes.printable import count_text


def why_refused(proof: Proof, images: ProofImages, lowering: Lowering) -> str:
    """Why a proof refuses a bundle, and what would help; empty where it does not."""
    refusing = {name: one for name, one in proof.answers.items() if not one.ok}
    if not refusing:
        return ""
    is_broken = any(one.verdict == "broken" for one in refusing.values())
    verdict = "broken" if is_broken else "undecided"
    said = "; ".join(
        f"{name}: {', '.join(limit.text for limit in one.limits if limit.verdict == verdict)}"
        for name, one in refusing.items()
        if one.verdict == verdict
    )
    head = f"parity is {'out of budget' if is_broken else 'undecided'} over {proof.report.images} images, {said}"
    if is_broken:
        return head + first_step_text(lowering, proof, images) + _other_pictures_text(lowering)
    return head + _more_images_text(next(iter(refusing.values())), images)


def _other_pictures_text(lowering: Lowering) -> str:
    """That a file was tried on the built-in pictures, which it was not trained on; empty where --data was given."""
    if lowering.plan.spec.source != ONNX or lowering.plan.data is not None:
        return ""
    return "; it was tried on the built-in pictures of clothes: give --data with pictures like those it will see"


def _more_images_text(answer: BackendParity, images: ProofImages) -> str:
    """Which options give the images that would decide, or what to do where no number would and there are no others."""
    used, available = answer.report.images, images.available
    needed = images_needed(answer) or max(used, available)  # what no number decides now, others may
    how = []
    if needed > available:
        how.append(f"--data with some {count_text(images.parts * (needed - available), 'more picture')}")
    if needed > images.wanted:
        how.append(f"--proof-images {needed}")
    if not how:
        return "; set another limit, or judge the figures measured with --budget confidence=0"
    return f"; give {' and '.join(how)}"


def images_needed(answer: BackendParity) -> int | None:
    """How many images in all would decide every limit, if the others go on as these did; None if no number would.

    More images may be looked at more often, and then it takes more of them to be as sure.
    """
    (measured,), budget = answer.report.backends.values(), answer.report.budget
    count: int | None = answer.images_needed
    while count is not None:
        limits = budget.limits(measured, answer.accuracy, looks=len(look_sizes(count)))
        needed = [limit.images_needed for limit in limits if limit.verdict == "undecided"]
        if None in needed:
            return None
        larger = max([count, *(one for one in needed if one is not None)])
        if larger == count:
            return count
        count = larger
    return None

"""The `report.html` that a bundle carries: the export's own proof, shown as the page of a check."""

from __future__ import annotations

from exporter.pipeline.images import Images, Proof
from exporter.verification.blocks.findings import Drift
from exporter.verification.plan import CheckPlan
from exporter.verification.report.page import html_from_sections
from exporter.verification.report.sections import section_from_check
from exporter.verification.verdicts import BackendCheck, BundleCheck
from runtimes.bundle import Bundle
from runtimes.parity.evidence import Evidence

REPORT = "report.html"


def page_from_proof(bundle: Bundle, images: Images, proof: Proof, drift: Drift | None) -> bytes:
    """The page, as UTF-8, of a bundle whose manifest names every other file; the same bundle gives the same bytes."""
    check = BundleCheck(
        bundle=bundle.manifest.name,
        name=bundle.manifest.name,
        budget=proof.report.budget,
        evidence="the pictures that the export proves itself with",
        images=len(images.fed),
        reference="FP32 PyTorch",
        backends=tuple(BackendCheck(name, "ok", "", answer, 0.0) for name, answer in proof.answers.items()),
        no_accuracy=images.no_accuracy,
        drift=drift,
    )
    section = section_from_check(check, CheckPlan(bundle, ()), Evidence(images.fed, proof.outputs, images.labels))
    return bytes(html_from_sections([section]))

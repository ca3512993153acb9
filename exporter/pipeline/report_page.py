"""The report that a bundle carries: the export's own proof, as a check's page."""

from __future__ import annotations

from exporter.pipeline.images import Images, Proof
from exporter.verification.blocks.findings import Drift
from exporter.verification.check import CheckPlan
from exporter.verification.report.page import html_from_sections
from exporter.verification.report.sections import section_from_check
from exporter.verification.verdicts import BundleCheck, Checked
from runtimes.bundle import Bundle
from runtimes.parity.evidence import Evidence

REPORT = "report.html"


def page_from_proof(bundle: Bundle, images: Images, proof: Proof, drift: Drift | None) -> bytes:
    """The page of a bundle that is about to be finished, whose manifest names every other file. The same bundle gives the same bytes."""
    check = BundleCheck(
        bundle=bundle.manifest.name,
        name=bundle.manifest.name,
        budget=proof.report.budget,
        evidence="the pictures that the export proves itself with",
        images=len(images.fed),
        reference="FP32 PyTorch",
        backends=tuple(Checked(name, "ok", "", answer, 0.0) for name, answer in proof.answers.items()),
        no_accuracy=images.no_accuracy,
        drift=drift,
    )
    section = section_from_check(check, CheckPlan(bundle, ()), Evidence(images.fed, proof.outputs, images.labels))
    return bytes(html_from_sections([section]))

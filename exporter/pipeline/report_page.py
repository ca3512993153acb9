"""The `report.html` that a bundle carries: the export's own proof, shown as the page of a check."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporter.pipeline.images import Proof
from exporter.pipeline.proof_images import ProofImages
from exporter.verification.blocks.findings import Drift
from exporter.verification.plan import CheckPlan
from exporter.verification.report.page import html_from_sections
from exporter.verification.report.sections import section_from_check
from exporter.verification.verdicts import BundleCheck, check_from_answer, remarks_on
from runtimes.bundle import Bundle
from runtimes.parity.evidence import Evidence

REPORT = "report.html"


def page_from_proof(bundle: Bundle, images: ProofImages, proof: Proof, drift: Drift | None) -> bytes:
    """The page, as UTF-8, of a bundle whose manifest names every other file; the same bundle gives the same bytes."""
    check = BundleCheck(
        bundle=bundle.manifest.name,
        name=bundle.manifest.name,
        budget=proof.report.budget,
        evidence="the pictures that the export proves itself with",
        images=proof.report.images,
        reference=bundle.manifest.reference_text,
        backends=tuple(check_from_answer(name, answer) for name, answer in proof.answers.items()),
        image_names=images.names(proof.places),
        no_accuracy=images.no_accuracy,
        drift=drift,
    )

    def read(numbers: list[int]) -> list[NDArray[Any]]:
        return list(images.at(proof.places[numbers]).fed)

    check = replace(check, remarks=remarks_on(check, bundle.manifest))
    section = section_from_check(check, CheckPlan(bundle, ()), Evidence(np.zeros(0), {}, proof.labels), read)
    return bytes(html_from_sections([section]))

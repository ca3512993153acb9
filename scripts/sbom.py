"""Write a wheel's bill of materials (CycloneDX 1.6, JSON): what it needs, with versions, licences and digests.

    pip install --dry-run --ignore-installed --require-hashes -r .github/requirements/action.txt --report report.json
    python scripts/sbom.py dist/resnet_export-0.1.0-py3-none-any.whl --report report.json --output sbom.cdx.json

Versions, licences and digests are those of the files that pip would install, as its own report has them; the extra
`export` counts as optional. The same wheel and report give the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import uuid
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from email.parser import Parser
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

EXTRA = "export"
UNKNOWN = ("", "UNKNOWN")
IMAGES = "calibration/assets/fashion_mnist.npz"
"""What others made and the wheel holds: Zalando's pictures, under the MIT licence."""
Json = dict[str, Any]
Packages = Mapping[str, Json]
"""Metadata of packages by their normal names, as pip's report has it, each with the `sha256` of its file."""


def bill_of_wheel(wheel: Path, report: Json) -> Json:
    """The bill of a wheel, of all that its base install and its extra `export` need.

    Args:
        report: of `pip install --report`, format 1 (pip.pypa.io, "Installation Report").

    Raises:
        ValueError: the report lacks something that the wheel needs; names it.
    """
    data = wheel.read_bytes()
    packages: dict[str, Json] = {canonicalize_name(one["metadata"]["name"]): _facts(one) for one in report["install"]}
    own = {**_metadata(wheel), "sha256": hashlib.sha256(data).hexdigest()}
    packages[canonicalize_name(own["name"])] = own
    required = _closure(own, packages, report["environment"], [])
    needed = _closure(own, packages, report["environment"], [EXTRA])
    root = needed.pop(own_name := canonicalize_name(own["name"]))
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, own['sha256'])}",
        "version": 1,
        "metadata": {"component": {**_component(own), "components": [_images(wheel)]}},
        "components": [
            {**_component(packages[name]), "scope": "required" if name in required else "optional"}
            for name in sorted(needed)
        ],
        "dependencies": [
            {"ref": _purl(packages[name]), "dependsOn": [_purl(packages[one]) for one in sorted(others)]}
            for name, others in ((own_name, root), *sorted(needed.items()))
        ],
    }


def _facts(entry: Json) -> Json:
    return {**entry["metadata"], "sha256": entry["download_info"]["archive_info"]["hashes"]["sha256"]}


def _metadata(wheel: Path) -> Json:
    """A wheel's own metadata under the names that pip's report uses."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        fields = Parser().parsestr(archive.read(name).decode())
    return {
        "name": fields["Name"],
        "version": fields["Version"],
        "license_expression": fields["License-Expression"],
        "requires_dist": fields.get_all("Requires-Dist") or [],
    }


def _closure(
    own: Json, packages: Packages, environment: Mapping[str, str], extras: Sequence[str]
) -> dict[str, set[str]]:
    """All that a package needs in turn, itself included: its normal name -> what that one needs by itself."""
    found: dict[str, set[str]] = {}
    taken: set[tuple[str, str]] = set()
    left: list[tuple[str, str]] = [(canonicalize_name(own["name"]), extra) for extra in ("", *extras)]
    while left:
        name, extra = left.pop()
        if (name, extra) in taken:
            continue
        taken.add((name, extra))
        if name not in packages:
            raise ValueError(f"expected {name} in pip's report, got nothing of it; make the report of the same lock")
        needs = list(_needs(packages[name], environment, extra))
        found.setdefault(name, set()).update(one for one, _ in needs)
        left += needs
    return found


def _needs(facts: Json, environment: Mapping[str, str], extra: str) -> Iterator[tuple[str, str]]:
    """What a package needs for one of its extras ("" for none): normal names, each without and with its own extras."""
    for line in facts.get("requires_dist") or ():
        one = Requirement(line)
        if one.marker is None or one.marker.evaluate({**environment, "extra": extra}):
            yield from ((canonicalize_name(one.name), further) for further in ("", *one.extras))


def _component(facts: Json) -> Json:
    return {
        "type": "library",
        "bom-ref": _purl(facts),
        "name": facts["name"],
        "version": facts["version"],
        "purl": _purl(facts),
        "licenses": _licences(facts),
        "hashes": [{"alg": "SHA-256", "content": facts["sha256"]}],
    }


def _images(wheel: Path) -> Json:
    with zipfile.ZipFile(wheel) as archive:
        digest = hashlib.sha256(archive.read(IMAGES)).hexdigest()
    return {
        "type": "data",
        "bom-ref": IMAGES,
        "name": "Fashion-MNIST",
        "licenses": [{"expression": "MIT"}],
        "hashes": [{"alg": "SHA-256", "content": digest}],
    }


def _purl(facts: Json) -> str:
    return f"pkg:pypi/{canonicalize_name(facts['name'])}@{facts['version']}"


def _licences(facts: Json) -> list[Json]:
    """The SPDX expression, or else the classifiers, or else the first line of the free text; empty without any."""
    if facts.get("license_expression"):
        return [{"expression": facts["license_expression"]}]
    kinds = [one.rpartition(" :: ")[2] for one in facts.get("classifier") or () if one.startswith("License :: ")]
    text = (facts.get("license") or "").strip().partition("\n")[0]
    return [{"license": {"name": name}} for name in kinds or [text] if name not in UNKNOWN]


def main() -> None:
    """Read the wheel and the report, and write the bill."""
    parser = argparse.ArgumentParser(description="Write a wheel's bill of materials (CycloneDX 1.6).")
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--report", type=Path, required=True, help="what pip install --report wrote")
    parser.add_argument("--output", type=Path, required=True, help="where the bill goes, as JSON")
    given = parser.parse_args()
    try:
        bill = bill_of_wheel(given.wheel, json.loads(given.report.read_bytes()))
    except (OSError, ValueError, LookupError) as error:
        sys.exit(f"error: {error}")
    given.output.write_text(json.dumps(bill, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()

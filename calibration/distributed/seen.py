"""What workers on other machines must see: the same bundle and the same pictures, at the same paths."""

from __future__ import annotations

import hashlib
from pathlib import Path

from calibration.data import ImageSource
from runtimes.bundle import Bundle
from runtimes.errors import BackendUnavailable, BadInput, BundleError
from runtimes.manifest import json_from_manifest

SHARE = "put {} at the same path on each machine, or on storage that they share"


def manifest_digest(bundle: Bundle) -> str:
    """sha256 of a bundle's manifest, and so of everything in it."""
    return hashlib.sha256(json_from_manifest(bundle.manifest)).hexdigest()


def seen_bundle(folder: Path, digest: str) -> Bundle:
    """Open a bundle that was opened on another machine, where its `manifest_digest` was this.

    Raises:
        BackendUnavailable: it is not there, or another one is.
    """
    try:
        bundle = Bundle.open(folder)
    except (BadInput, BundleError) as error:
        raise BackendUnavailable(f"expected the bundle {folder}, got: {error}; {SHARE.format('it')}") from error
    if manifest_digest(bundle) != digest:
        raise BackendUnavailable(f"expected the bundle {folder}, got another one there; {SHARE.format('one')}")
    return bundle


def first_readable(source: ImageSource) -> int | None:
    """The place of the first picture that can be read, if there is one."""
    for place in range(source.count):
        try:
            source.picture(place)
        except BadInput:
            continue
        return place
    return None


def check_seen(source: ImageSource, readable: int | None) -> None:
    """Check that the picture that could be read on another machine (`first_readable`) can be read here.

    Raises:
        BackendUnavailable: it cannot; says why.
    """
    if readable is None:
        return
    try:
        source.picture(readable)
    except BadInput as error:
        raise BackendUnavailable(
            f"expected pictures that this worker can read, got: {error}; {SHARE.format('them')}"
        ) from error

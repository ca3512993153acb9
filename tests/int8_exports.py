"""What the tests of `resnet-export --int8` share: labelled pictures, and the bundle that is calibrated on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from calibration.data import built_in
from exporter.cli import export as export_cli

BATCH = ("--batch", "1:4:16")
PICTURES = 300
"""Enough to decide that INT8 loses no point of accuracy."""


@pytest.fixture(name="pictures", scope="module")
def pictures_fixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive of `PICTURES` labelled pictures."""
    source = built_in("train").subset(np.arange(PICTURES))
    path = tmp_path_factory.mktemp("data") / "pictures.npz"
    np.savez(
        path,
        images=np.stack([np.asarray(source.image(place)) for place in range(PICTURES)]),
        labels=np.asarray(source.labels),
    )
    return path


@pytest.fixture(name="bundle", scope="module")
def bundle_fixture(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Path:
    """What `resnet-export resnet20 --int8 --data pictures.npz` writes."""
    path = tmp_path_factory.mktemp("bundle") / "resnet20-int8"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "sys.argv",
            ["command", "resnet20", "--int8", "--data", str(pictures), "--output", str(path), "--quiet", *BATCH],
        )
        with pytest.raises(SystemExit) as left:
            export_cli.main()
    assert left.value.code == 0
    return path

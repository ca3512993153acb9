"""`scripts/peak_memory.py`: the pictures that it makes, and the peak of a command's own process."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from PIL import Image
from script_modules import script_module

from calibration.data import open_source

script = script_module("peak_memory")


def test_the_pictures_are_links_to_a_few_in_ten_classes(tmp_path: Path) -> None:
    source = open_source(str(script.make_pictures(tmp_path, 70, (40, 30))))
    assert (source.count, source.classes) == (70, tuple("0123456789"))
    assert source.image(69).size == (40, 30)
    assert len({path.stat().st_ino for path in tmp_path.rglob("*.jpg")}) == script.DISTINCT
    with Image.open(next((tmp_path / "drawn").iterdir())) as image:
        assert image.mode == "RGB"


def test_the_peak_is_that_of_the_command_s_process() -> None:
    assert 20 < script.peak_of("deploy inspect --help") < 200
    with pytest.raises(click.ClickException, match="is no bundle"):
        script.peak_of("deploy check nowhere --quiet")


@pytest.mark.parametrize("text", ["640", "640x", "axb", "1x2x3"])
def test_a_size_is_two_numbers(text: str) -> None:
    with pytest.raises(click.BadParameter, match=f"expected WIDTHxHEIGHT, got {text}"):
        script.size_from_text(None, None, text)

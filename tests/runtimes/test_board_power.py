"""Power mode, clocks and temperatures of a Jetson, out of recorded trees of files."""

from __future__ import annotations

from pathlib import Path

import pytest
from boards import ORIN_NANO_MODES, orin_nano, write_files

from runtimes.board import power as power_file
from runtimes.board.jetpack import this_board
from runtimes.board.power import Clock, power


def test_an_orin_nano_below_its_full_mode_says_so(tmp_path: Path) -> None:
    found = power(orin_nano(tmp_path))
    assert found is not None
    assert (found.mode, found.full_mode, found.full_id) == ("15W", "MAXN_SUPER", 2)
    assert found.clocks == (Clock("CPU", 729, 729, 1344, 1728), Clock("GPU", 306, 306, 612, 1020))
    assert found.temperatures_c == {"cpu-thermal": 47.531, "gpu-thermal": 49.0}
    assert found.problem == (
        "power mode 15W, not MAXN_SUPER (sudo nvpmodel -m 2); the clocks of CPU and GPU are not locked (sudo jetson_clocks)"
    )
    assert str(found) == "power mode 15W, CPU 729 of 1344 MHz, GPU 306 of 612 MHz, 49 C"


def test_at_full_power_with_locked_clocks_there_is_no_problem(tmp_path: Path) -> None:
    found = power(orin_nano(tmp_path, mode=2, locked=True))
    assert found is not None
    assert (found.mode, found.problem) == ("MAXN_SUPER", "")
    assert all(one.is_locked for one in found.clocks)


@pytest.mark.parametrize(
    ("modes", "full"),
    [
        ("< POWER_MODEL ID=0 NAME=MAXN >\n< POWER_MODEL ID=3 NAME=MODE_50W >", "MAXN"),
        ("< POWER_MODEL ID=0 NAME=15W >\n< POWER_MODEL ID=1 NAME=7W >", "15W"),
        ("< POWER_MODEL ID=1 NAME=120W >\n< POWER_MODEL ID=0 NAME=MAXN >\n< POWER_MODEL ID=2 NAME=90W >", "MAXN"),
        ("< POWER_MODEL ID=0 NAME=CUSTOM >", ""),
        ("", ""),
    ],
)
def test_the_full_mode_is_found_by_its_name(tmp_path: Path, modes: str, full: str) -> None:
    found = power(orin_nano(tmp_path, modes=modes))
    assert found is not None
    assert found.full_mode == full


def test_what_cannot_be_read_is_left_empty(tmp_path: Path) -> None:
    write_files(tmp_path, {"etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 1\n"})
    found = power(tmp_path)
    assert found is not None
    assert (found.mode, found.clocks, found.temperatures_c, found.problem) == ("", (), {}, "")
    assert str(found) == "power mode unknown"
    orin_nano(tmp_path)
    (tmp_path / "sys/class/devfreq/17000000.gpu/cur_freq").write_text("<unsupported>\n")
    (tmp_path / "var/lib/nvpmodel/status").write_bytes(b"\xff\xfe")
    found = power(tmp_path)
    assert found is not None
    assert (found.mode, [one.name for one in found.clocks]) == ("", ["CPU"])


def test_a_thor_names_its_gpu_otherwise(tmp_path: Path) -> None:
    found = power(orin_nano(tmp_path, gpu="gpu-gpc-0"))
    assert found is not None
    assert found.clocks[1].name == "GPU"


def test_elsewhere_there_is_none(tmp_path: Path) -> None:
    write_files(tmp_path, {"etc/nvpmodel.conf": ORIN_NANO_MODES, "proc/meminfo": ""})
    assert power(tmp_path) is None
    assert power() is None or this_board() is not None


def test_nvpmodel_is_asked_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "bin" / "nvpmodel"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\necho 'NVPM WARN: fan mode is not set!'\necho 'NV Power Mode: MAXN_SUPER'\necho 2\n")
    tool.chmod(0o755)
    monkeypatch.setattr(power_file, "QUERY", (str(tool), "-q"))
    root = orin_nano(tmp_path / "root")
    monkeypatch.setattr(power_file, "ROOT", root)
    found = power(root)
    assert found is not None
    assert found.mode == "MAXN_SUPER"
    for text in ("#!/bin/sh\nexit 1\n", "#!/bin/sh\nexec sleep 60\n"):
        tool.write_text(text)
        monkeypatch.setattr(power_file, "QUERY_S", 0.2)
        found = power(root)
        assert found is not None
        assert found.mode == "15W"

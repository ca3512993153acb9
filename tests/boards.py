"""Trees of files as boards show them: what `runtimes.board` reads. Their forms are those that owners of boards have
published; the figures are made up."""

from __future__ import annotations

from pathlib import Path

ORIN_NANO_MODES = """
< PM_CONFIG DEFAULT=0 >
< POWER_MODEL ID=0 NAME=15W >
CPU_ONLINE CORE_0 1
< POWER_MODEL ID=1 NAME=25W >
< POWER_MODEL ID=2 NAME=MAXN_SUPER >
< POWER_MODEL ID=3 NAME=7W >
"""


def write_files(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def orin_nano(
    root: Path, *, mode: int = 0, modes: str = ORIN_NANO_MODES, locked: bool = False, gpu: str = "17000000.gpu"
) -> Path:
    """JetPack 6.2 on an Orin Nano of 8 GB, 1.0 GB of which is free."""
    lowest_cpu, lowest_gpu = ("1344000", "612000000") if locked else ("729600", "306000000")
    processors = {
        f"sys/devices/system/cpu/cpufreq/policy{number}/{name}": f"{value}\n"
        for number, now in ((0, "1344000"), (4, "729600" if not locked else "1344000"))
        for name, value in (
            ("scaling_cur_freq", now),
            ("scaling_min_freq", lowest_cpu),
            ("scaling_max_freq", "1344000"),
            ("cpuinfo_max_freq", "1728000"),
        )
    }
    graphics = {
        f"sys/class/devfreq/{gpu}/{name}": f"{value}\n"
        for name, value in (
            ("cur_freq", "612000000" if locked else "306000000"),
            ("min_freq", lowest_gpu),
            ("max_freq", "612000000"),
            ("available_frequencies", "306000000 612000000 1020000000"),
        )
    }
    return write_files(
        root,
        {
            "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\n",
            "proc/device-tree/model": "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super\0",
            "proc/meminfo": meminfo(7802916, 1048576),
            "etc/nvpmodel.conf": modes,
            "var/lib/nvpmodel/status": f"pmode:{mode:04}\n",
            "sys/class/devfreq/15340000.vic/cur_freq": "115200000\n",
            **processors,
            **graphics,
            "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
            "sys/class/thermal/thermal_zone0/temp": "47531\n",
            "sys/class/thermal/thermal_zone1/type": "gpu-thermal\n",
            "sys/class/thermal/thermal_zone1/temp": "49000\n",
            "sys/class/thermal/thermal_zone2/type": "cv0-thermal\n",
        },
    )


def meminfo(total_kib: int, available_kib: int) -> str:
    return f"MemTotal:        {total_kib} kB\nMemFree:  1000 kB\nMemAvailable:    {available_kib} kB\nSwapTotal: 0 kB\n"

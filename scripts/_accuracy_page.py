"""docs/accuracy.md, written from what `scripts/accuracy.py` measured."""

from __future__ import annotations

from typing import Any

from _accuracy_figures import Paired
from _accuracy_tools import OURS, VARIANTS

from runtimes.parity.intervals import wilson_interval

Row = dict[str, Any]
EXPLANATION = """\
# INT8 accuracy

Written by `scripts/accuracy.py`; do not edit. Everyone is calibrated on the same images and judged on the same other ones. How
each network is made stands in `scripts/accuracy.toml`; of one that is not there, in [Measured](measured.md#int8-accuracy).

- **SQNR** is signal to quantization noise in dB, of the logits without their mean over classes, which softmax ignores.
- **Fall** is how many points of top-1 are lost against FP32, with Tango's 95 % interval of the paired difference.
- **Exact** runs the graph as it is written: every Q/DQ pair, and every FP16 tensor rounded. **Plain** is a plain session of ONNX
  Runtime on the CPU, which fuses pairs into its own kernels.
- † marks a graph that TensorRT refuses (asymmetric, unsigned, or with quantized biases), by the rules of
  `resnet-deploy inspect`, which were measured on TensorRT-RTX.
- Of a tool's own ways to calibrate, the summary shows the best in SQNR and the best in top-1.
"""


def page_from_measurements(measured: dict[str, Any]) -> str:
    """The whole page."""
    networks: dict[str, Any] = measured["networks"]
    lines = [EXPLANATION, environment_text(measured), "", "## SQNR of the logits, dB, exact", "", *sqnr_table(networks)]
    lines += ["", "## Fall of top-1 in points, exact", "", *fall_table(networks), "", *verdict(measured)]
    for name, network in networks.items():
        lines += ["", f"## {name}", "", facts(network), "", *details(network)]
    return "\n".join(lines) + "\n"


def environment_text(measured: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in measured["versions"].items())
    flags = ", ".join(measured["cpu_flags"]) or "none of those for INT8"
    return f"Measured {measured['date']} on {measured['machine']} ({flags}), seed {measured['seed']}: {versions}."


def tools_of(networks: dict[str, Any]) -> list[str]:
    """The tools that were measured, ours first."""
    there = {row["tool"] for network in networks.values() for row in network["rows"]}
    return [tool for tool in (OURS, *VARIANTS) if tool in there]


def sqnr_table(networks: dict[str, Any]) -> list[str]:
    """A line for each network; in bold the best of those that TensorRT takes."""
    tools = tools_of(networks)
    lines = [line_of(["", *tools]), line_of(["---", *["---:"] * len(tools)])]
    for name, network in networks.items():
        best = max(network["rows"], key=lambda row: (comparable(row), row["exact"]["sqnr_db"]))
        cells = []
        for tool in tools:
            row = max(rows_of(network, tool), key=sqnr, default=None)
            text = "" if row is None else f"{sqnr(row):.1f}{'†' if row['refused'] else ''}"
            cells.append(f"**{text}**" if row is best else text)
        lines.append(line_of([name, *cells]))
    return lines


def fall_table(networks: dict[str, Any]) -> list[str]:
    """A line for each network whose test images have labels."""
    tools = tools_of(networks)
    lines = [line_of(["", "images", "FP32", *tools]), line_of(["---", "---:", "---:", *["---"] * len(tools)])]
    for name, network in networks.items():
        if "right" not in network["fp32"]:
            continue
        cells = [str(network["images"]), f"{network['fp32']['right'] / network['images']:.2%}"]
        for tool in tools:
            row = max(rows_of(network, tool), key=lambda row: row["exact"]["right"], default=None)
            cells.append("" if row is None else f"{fall_text(row, network)}{'†' if row['refused'] else ''}")
        lines.append(line_of([name, *cells]))
    return lines


def verdict(measured: dict[str, Any]) -> list[str]:
    """Who is ahead of whom."""
    found = shortcomings(measured)
    if found:
        return ["Not as wanted:", "", *(f"- {one}" for one in found)]
    return [
        f"Networks: {len(measured['networks'])}. On each, ours has the highest SQNR of the graphs that TensorRT takes, and no tool is ahead in "
        "top-1 image by image: no 95 % interval (Tango) of ours minus its own lies below zero."
    ]


def shortcomings(measured: dict[str, Any]) -> list[str]:
    """Where a graph that TensorRT takes has more SQNR than ours, and where a tool is ahead of ours in top-1."""
    found = []
    for name, network in measured.get("networks", {}).items():
        (mine, *_) = rows_of(network, OURS)
        for row in network["rows"]:
            if row["tool"] not in VARIANTS:
                continue
            label = f"{row['tool']} {row['variant']}"
            if not row["refused"] and sqnr(row) > sqnr(mine):
                found.append(f"{name}: {label} has {sqnr(row):.1f} dB, ours {sqnr(mine):.1f} dB")
            if "ours_and_it" in row and Paired(**row["ours_and_it"]).fall(network["images"])[2] < 0:
                found.append(f"{name}: {label} is ahead in top-1, {lead_text(row, network)}")
    return found


def facts(network: dict[str, Any]) -> str:
    """What was measured on what."""
    text = (
        f"{network['model']}, {network['classes']} classes; calibrated on {network['calibration_images']} images, judged on "
        f"{network['images']} others ({network['date']})"
    )
    if "right" not in network["fp32"]:
        return f"{text}, which have no labels."
    correct, count = network["fp32"]["right"], network["images"]
    low, high = wilson_interval(correct, count)
    return f"{text}. FP32 has {correct / count:.2%} (95 % interval {low:.2%} to {high:.2%}), {network['fp32']['bytes'] / 1e6:.2f} MB."


def details(network: dict[str, Any]) -> list[str]:
    """A line for each candidate; the last column is ours against it, image by image."""
    labelled = "right" in network["fp32"]
    names = ["", "TensorRT", "SQNR exact", "SQNR plain", "agreement exact", "plain", "mean error of probability", "MB"]
    names += ["fall exact", "fall plain", "only ours right : only it"] if labelled else []
    lines = [line_of(names), line_of(["---", "---", *["---:"] * (len(names) - 2)])]
    for row in network["rows"]:
        count = network["images"]
        cells = [
            f"{row['tool']} {row['variant']}".strip(),
            "refuses" if row["refused"] else "takes",
            *(f"{row[way]['sqnr_db']:.1f}" for way in ("exact", "plain")),
            *(f"{row[way]['agree'] / count:.2%}" for way in ("exact", "plain")),
            f"{row['exact']['probability_error']:.2g}",
            f"{row['bytes'] / 1e6:.2f}",
        ]
        if labelled:
            cells += [fall_text(row, network), fall_text(row, network, "plain"), lead_text(row, network)]
        lines.append(line_of(cells))
    return lines


def fall_text(row: Row, network: dict[str, Any], way: str = "exact") -> str:
    fall, low, high = Paired(**row[way]["fp32_and_it"]).fall(network["images"])
    return f"{fall * 100:.2f} [{low * 100:.2f}, {high * 100:.2f}]"


def lead_text(row: Row, network: dict[str, Any]) -> str:
    if "ours_and_it" not in row:
        return ""
    both = Paired(**row["ours_and_it"])
    return f"{both.first} : {both.second}{' **behind**' if both.fall(network['images'])[2] < 0 else ''}"


def rows_of(network: dict[str, Any], tool: str) -> list[Row]:
    return [row for row in network["rows"] if row["tool"] == tool]


def comparable(row: Row) -> bool:
    """Whether it is INT8 as its tool makes it by default, or at its best, and TensorRT takes it."""
    return not row["refused"] and row["tool"] in (OURS, *VARIANTS)


def sqnr(row: Row) -> float:
    found: float = row["exact"]["sqnr_db"]
    return found


def line_of(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"

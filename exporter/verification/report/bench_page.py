"""A benchmark as an HTML page: batch against images a second with the machine's roof, latencies, tables, the machine."""

from __future__ import annotations

from exporter.verification.report.bench_lines import (
    LINE_NAMES,
    machine_lines,
    noise_text,
    ratio_text,
    remarks_of,
    winner_text,
)
from exporter.verification.report.bench_plots import latency_svg, throughput_svg
from exporter.verification.report.drawing import Caption
from exporter.verification.report.environment import page_environment
from markupsafe import Markup
from runtimes.benchmark.results import LINES, BundleFacts, Result
from runtimes.printable import as_text

PAGE = "bench.html.j2"

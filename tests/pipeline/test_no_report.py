"""`--no-report`: the same bundle and the same proof without the page, and without the work that only the page takes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from commands import Ran

from exporter import ExportPlan, export
from runtimes import Bundle
from runtimes.specs import BatchRange

PLAN = """ExportPlan("resnet20", Path("bare"), "fp16", "random", batch=BatchRange(1, 2, 4), report=False)"""
SCRIPT = f"""
import sys
from pathlib import Path
from exporter import ExportPlan, export
from runtimes.specs import BatchRange
done = export({PLAN})
assert "follow blocks" not in done.seconds
print([name for name in ("matplotlib", "jinja2") if name in sys.modules])
"""


def test_the_bundle_is_the_same_without_the_page_and_nothing_is_loaded_to_draw_it(
    tmp_path: Path, deploy: Callable[..., Ran]
) -> None:
    ran = subprocess.run([sys.executable, "-c", SCRIPT], cwd=tmp_path, capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (0, "[]\n"), ran.stderr
    plan = ExportPlan("resnet20", tmp_path / "whole", "fp16", "random", batch=BatchRange(1, 2, 4))
    whole, bare = export(plan), Bundle.open(tmp_path / "bare").manifest
    files = dict(whole.manifest.files)
    assert files.pop("report.html")
    assert bare.files == files
    assert (bare.parity, bare.model, bare.asked) == (whole.manifest.parity, whole.manifest.model, whole.manifest.asked)
    assert "follow blocks" in whole.seconds
    assert deploy("check", tmp_path / "bare", "--quiet", "--html", tmp_path / "page.html").code == 0
    assert (tmp_path / "page.html").exists()


def test_a_dry_run_leaves_it_out_and_evidence_without_it_is_refused(run: Callable[..., Ran]) -> None:
    planned = run("resnet20", "--no-report", "--dry-run", "--json").json
    assert planned["files"] == ["manifest.json", "model.onnx", "reference.pt2", "golden.npz"]
    ran = run("resnet20", "--no-report", "--keep-rejected")
    assert ran.code == 2
    assert ran.error == (
        "error: --keep-rejected keeps a refused bundle for what its report shows, and --no-report leaves that out; leave one of "
        "them out"
    )

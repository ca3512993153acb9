"""Write .github/requirements/*.txt: what the GitHub action and the release install, each file of it by its sha256.

    pip install uv==0.13.9
    python scripts/lock.py

uv resolves for every Python and system at once and lists the digests of all files of each release, as the package index
gives them. Versions are those of the environment that this runs in, so run it where the tests passed; what an older or
another Python needs besides is the newest that fits.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / ".github/requirements"
HEADER = "# Written by scripts/lock.py from pyproject.toml. Install with: pip install --require-hashes -r FILE\n"


def wanted(project: Mapping[str, Any]) -> dict[str, list[str]]:
    """What each file is to hold, with all that it needs in turn: the name of the file -> requirements.

    The action installs its own checkout, which needs hatchling to be built; a release is built with both tools.
    """
    tools = {line.partition("==")[0]: line for line in project["dependency-groups"]["dev"] if isinstance(line, str)}
    facts = project["project"]
    return {
        "action.txt": [*facts["dependencies"], *facts["optional-dependencies"]["export"], tools["hatchling"]],
        "release.txt": [tools["build"], tools["hatchling"]],
    }


def versions_here() -> list[str]:
    """The versions of this environment, as requirements of its Python and later ones."""
    since = ".".join(map(str, sys.version_info[:2]))
    found: dict[str, str] = {}
    for one in distributions():
        found.setdefault(re.sub(r"[-_.]+", "-", one.metadata["Name"]).lower(), one.version)  # the first is imported
    return [f"{name}=={version} ; python_version >= '{since}'" for name, version in sorted(found.items())]


def lock(requirements: Sequence[str], constraints: Sequence[str], minimum: str) -> str:
    """Resolve requirements for all Pythons from `minimum` on: lines with versions, markers and digests."""
    with tempfile.TemporaryDirectory() as folder:
        given, limits = Path(folder, "wanted.in"), Path(folder, "constraints.txt")
        given.write_text("\n".join(requirements))
        limits.write_text("\n".join(constraints))
        options = ["--universal", "--generate-hashes", "--no-annotate", "--no-header", "--quiet"]
        command = [sys.executable, "-m", "uv", "pip", "compile", str(given), "--constraint", str(limits), *options]
        done = subprocess.run([*command, "--python-version", minimum], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(
            f"error: uv cannot lock: {done.stderr.strip() or 'it says no more'}; is it installed (pip install uv)?"
        )
    return done.stdout


def main() -> None:
    """Write every file anew."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    minimum = project["project"]["requires-python"].removeprefix(">=")
    FOLDER.mkdir(exist_ok=True)
    here = versions_here()
    for name, requirements in wanted(project).items():
        (FOLDER / name).write_text(HEADER + lock(requirements, here, minimum))


if __name__ == "__main__":
    main()

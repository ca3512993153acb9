"""Run both command lines in a new interpreter that notes each connection it makes and each program it starts.

Python tells of them by its audit events (PEP 578). The processes that a command starts for its work are audited, too:
each finds the hook in the folder that comes first on its path.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HOOK = """
import os, sys
CONNECTIONS = ("connect", "sendto", "sendmsg", "bind", "getaddrinfo", "gethostbyname")
PROGRAMS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "pty.spawn")
EVENTS = (*(f"socket.{name}" for name in CONNECTIONS), *PROGRAMS)
NOTES = os.open(os.environ["AUDIT_NOTES"], os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC)

def note(event, arguments):
    if event in EVENTS:
        os.write(NOTES, f"{event} {arguments!r:.200}\\n".encode())

sys.addaudithook(note)
"""
SCRIPT = """
import json, os, sys
from exporter.cli import deploy, export

if __name__ == "__main__":
    codes = []
    for folder, name, *arguments in json.loads(sys.stdin.read()):
        os.chdir(folder)
        sys.argv = [name, *arguments]
        try:
            (export if name == "resnet-export" else deploy).main()
        except SystemExit as left:
            codes.append(left.code)
    print(json.dumps(codes))
"""


@dataclass(frozen=True)
class Audited:
    """What the commands left: their exit codes, what they said, and a line for each connection and program."""

    codes: list[int]
    out: str
    err: str
    notes: list[str]


def run_audited(folder: Path, *commands: Sequence[object]) -> Audited:
    """Run the commands one after another: each is the folder to stand in, the command's name, and its arguments.

    `folder` is for the script and its notes.
    """
    notes, script, hook = folder / "notes.txt", folder / "commands.py", folder / "hook"
    hook.mkdir(parents=True)
    notes.touch()
    (hook / "sitecustomize.py").write_text(HOOK)
    script.write_text(SCRIPT)
    surroundings = {**os.environ, "PYTHONPATH": f"{hook}{os.pathsep}{ROOT}", "AUDIT_NOTES": str(notes)}
    done = subprocess.run(
        [sys.executable, str(script)],
        input=json.dumps([list(map(str, command)) for command in commands]),
        env=surroundings,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    *out, codes = done.stdout.splitlines()
    return Audited(json.loads(codes), "\n".join(out), done.stderr, notes.read_text().splitlines())

"""`resnet-deploy build --on`, over a real sshd on loopback whose install is this checkout with stand-ins for a GPU."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from builds import engines
from commands import Ran
from engine_fixtures import cuda_fixture, folder_fixture, proven_fixture, reference_fixture  # noqa: F401  # pytest finds them by their names
from loopback_sshd import Board, board_fixture, free_port, sshd_fixture  # noqa: F401
from small_bundles import write_bundle
from standin_cuda import StandinCuda
from standin_tensorrt import StandinTensorRT, imported_as_tensorrt

from exporter.deployment.remote import ssh
from exporter.deployment.remote.address import address_from_text
from runtimes import Bundle, Manifest, open_runtime
from runtimes.bundle import read_manifest
from runtimes.bundle_writing import check_destination, write_manifest
from runtimes.errors import BackendUnavailable
from runtimes.nvidia.engine_file import facts_of
from runtimes.specs import BatchRange

ROOT = Path(__file__).resolve().parents[2]
VERSION = importlib.metadata.version("resnet-export")
ENGINE = "tensorrt-10.3.0.30-sm87-b2-3-4"
BROUGHT = [f"{ENGINE}{kind}" for kind in (".check.json", ".check.xml", ".engine", ".json")]
REAL = shlex.join(["env", f"PYTHONPATH={ROOT}", sys.executable, str(ROOT / "tests" / "standin_board.py")])
BUILT = 'echo \'{"engine": "bundle/engines/tensorrt-1.engine", "device": {}}\''
"""What a build prints that went well, for a board that only pretends."""
NASTY = ("-rf", "$(touch owned)", "a; touch owned;", "two words", "`touch owned`", 'quote\'s "all"', "line\nbreak", "*")

Build = Callable[..., Ran]


@pytest.fixture(name="bundle")
def small_bundle_fixture(manifest: Manifest, tmp_path: Path) -> Path:
    """A bundle for a board that only pretends to build."""
    folder = write_bundle(tmp_path / "bundle", manifest)
    shutil.rmtree(folder / "engines")
    (folder / "manifest.json").unlink()
    write_manifest(folder, manifest)
    return folder


@pytest.fixture(name="build")
def build_fixture(deploy: Callable[..., Ran], board: Board) -> Build:
    """`resnet-deploy build --on board`, and nothing is left on the board."""

    def call(bundle: Path, *options: object, config: Path | None = None, on: str = "board") -> Ran:
        ran = deploy("build", bundle, "--on", on, "--ssh-config", config or board.config, *options)
        assert board.temporary == []
        return ran

    return call


def install(board: Board) -> None:
    """This checkout as the board's install, with a key of its own."""
    board.put_program("resnet-deploy", f'export RESNET_EXPORT_ENGINE_KEY={board.folder}/engine.key\nexec {REAL} "$@"')


def pretend(
    board: Board, *, build: str = BUILT, check: str = "echo '{}'; touch check.xml", version: str = VERSION
) -> None:
    """A board's install that only pretends; each verb is a script for sh. `asked` gets what it was asked for."""
    board.put_program(
        "resnet-deploy",
        f'echo "$@" >>{board.folder}/bin/asked\ncase $1 in --version) echo "resnet-deploy, version {version}" ;;\n'
        f"build) {build} ;;\ncheck) {check} ;;\nesac",
    )


def asked(board: Board) -> list[str]:
    return (board.folder / "bin" / "asked").read_text().splitlines()


def changed(bundle: Path, files: dict[str, bytes]) -> Manifest:
    """Add files to a bundle; gives its new manifest."""
    manifest = read_manifest(bundle)
    (bundle / "manifest.json").unlink()
    for name, data in files.items():
        (bundle / name).parent.mkdir(exist_ok=True)
        (bundle / name).write_bytes(data)
    return write_manifest(bundle, manifest)


def test_an_engine_is_built_and_checked_there_and_brought_back(
    proven: Path, board: Board, build: Build, cuda: StandinCuda, tmp_path: Path
) -> None:
    install(board)
    (board.folder / "home" / ".bashrc").write_text("echo welcome; echo '{'")  # start-up files may print
    ran = build(proven, "--json")
    assert ran.code == 0, ran.err
    found, engine = ran.json, proven / "engines" / f"{ENGINE}.engine"
    assert (found["board"], found["engine"], found["cached"]) == ("board", str(engine), False)
    assert (found["checked"], found["parity"]["ok"], found["check"]["ok"]) == (True, True, True)
    assert found["engine_sha256"] == facts_of(engine).engine_sha256
    assert engines(proven) == BROUGHT
    assert json.loads(engine.with_suffix(".check.json").read_text()) == found["check"]
    (suite,) = ElementTree.parse(engine.with_suffix(".check.xml")).getroot()
    assert (suite.get("name"), suite.get("failures"), suite.get("errors")) == ("tiny-fp32", "0", "0")
    shown = ran.err.splitlines()
    assert (shown[0], shown[-1]) == ("connect to board", f"bring {engine.name} back")
    assert {"board: parse", "board: check", "board: check tiny-fp32 on tensorrt"} < set(shown)
    check_destination(proven, force=True)  # an export may replace the bundle with all of them
    # The board trusts it where it comes back with a copy of the bundle, and this machine does not.
    copy = shutil.copytree(proven, tmp_path / "copy")
    there = [str(board.folder / "bin" / "resnet-deploy"), "check", str(copy), "--backend", "tensorrt"]
    assert subprocess.run(there, check=False, capture_output=True).returncode == 0
    with imported_as_tensorrt(StandinTensorRT(cuda, "10.3.0.30")):
        with pytest.raises(BackendUnavailable, match="was not built on this machine"):
            open_runtime(proven, "tensorrt")
        open_runtime(proven, "tensorrt", trust_engine=found["engine_sha256"]).close()


@pytest.mark.slow  # two real builds and checks
def test_text_names_the_board_and_the_reports_and_a_second_build_replaces_the_first(
    proven: Path, board: Board, build: Build
) -> None:
    install(board)
    assert build(proven).code == 0
    (proven / "engines" / f"{ENGINE}.check.xml").write_text("of the first")
    ran = build(proven, "--quiet")
    assert (ran.code, ran.err) == (0, "")
    assert engines(proven) == BROUGHT
    assert "of the first" not in (proven / "engines" / f"{ENGINE}.check.xml").read_text()
    assert "built on     board, which trusts it; other machines load it with --trust-engine alone" in ran.out
    assert f"reports      {ENGINE}.check.json, {ENGINE}.check.xml, beside the engine" in ran.out
    assert "100.00%" in ran.out


@pytest.mark.slow  # builds with TensorRT-RTX
def test_an_engine_for_other_gpus_is_brought_back_unchecked(proven: Path, board: Board, build: Build) -> None:
    install(board)
    ran = build(proven, "--backend", "tensorrt-rtx", "--target", "sm86")
    assert ran.code == 0, ran.err
    assert "answers      not checked: tiny-fp32: tensorrt-rtx cannot answer: " in ran.out
    assert len(engines(proven)) == len(BROUGHT)


def test_only_files_that_the_manifest_names_are_copied_and_their_names_reach_no_shell(
    bundle: Path, board: Board, build: Build
) -> None:
    copied = board.folder / "bin" / "copied"
    pretend(board, build=f"cp -r bundle {copied}; exit 1")
    manifest = changed(bundle, {**dict.fromkeys(NASTY, b"x"), "a/b c": b"y", "reference.pt2": b"large"})
    (bundle / "unknown").write_text("not named by the manifest")
    assert build(bundle).code == 1
    found = {path.relative_to(copied).as_posix() for path in copied.rglob("*") if path.is_file()}
    assert found == {*manifest.files, "manifest.json"} - {"reference.pt2"}
    assert set(Bundle.open(copied).manifest.files) == found - {"manifest.json"}
    assert [*Path.cwd().rglob("owned"), *board.folder.rglob("owned")] == []


def test_options_of_the_build_are_passed_on_as_they_were_given(bundle: Path, board: Board, build: Build) -> None:
    pretend(board, build="exit 1")
    given = ("--workspace", "512", "--version-compatible", "--timing-cache", "/a b/$(x)", "--force")
    assert build(bundle, *given, "--quiet", "--json", on="board:" + str(board.port)).code == 1
    words = "--json --quiet --version-compatible --workspace=512 --timing-cache=/a b/$(x) --force"
    assert asked(board)[1:] == [f"build bundle {words}"]


@pytest.mark.parametrize("code", [1, 2, 3, 4])
def test_the_exit_code_of_a_build_there_is_ours_and_one_line_names_the_board(
    bundle: Path, board: Board, build: Build, code: int
) -> None:
    pretend(board, build=f"echo step >&2; echo 'error: expected X, got Y; do Z' >&2; exit {code}")
    ran = build(bundle)
    assert (ran.code, ran.error) == (code, "error: build on board: expected X, got Y; do Z")
    assert "board: step" in ran.err
    assert engines(bundle) == []


def test_nothing_is_brought_back_if_the_check_there_fails(bundle: Path, board: Board, build: Build) -> None:
    pretend(board, check="echo 'error: out of budget' >&2; exit 4")
    ran = build(bundle, "--json")
    assert (ran.code, ran.error) == (4, "error: check on board: out of budget")
    assert engines(bundle) == []


@pytest.mark.parametrize(
    ("board_does", "said"),
    [
        ({"build": "kill -9 $$"}, "build on board: it was killed, as systems do when memory runs out; "),
        ({"build": "exit 77"}, "build on board: it ended with exit code 77 and gave no reason; see what it printed"),
        ({"build": "echo nonsense"}, "expected JSON from build on board, got 'nonsense\\\\n' ("),
        ({"build": 'echo \'{"engine": "../../x"}\''}, "expected an engine's name from build on board, got 'x'; "),
        ({"build": 'echo \'{"engine": "a/$(x).engine"}\''}, "expected an engine's name from build on board, got '$(x)"),
        ({"check": "echo []; touch check.xml"}, "expected JSON from check on board, got '[]\\\\n' ("),
        ({}, "cannot copy to or from board: "),  # there is no engine
        (
            {
                "build": f"{BUILT}; mkdir bundle/engines; touch bundle/engines/tensorrt-1.engine bundle/engines/tensorrt-1.json",
                "check": "echo '{}'; mkdir check.xml",
            },
            "cannot copy to or from board: ",
        ),
        (
            {
                "build": f"{BUILT}; mkdir bundle/engines; echo x >bundle/engines/tensorrt-1.engine; echo y >bundle/engines/tensorrt-1.json"
            },
            "tensorrt-1.engine from board cannot be used: ",
        ),
    ],
)
def test_a_board_that_does_something_else_is_told_and_nothing_is_kept(
    bundle: Path, board: Board, build: Build, board_does: dict[str, str], said: str
) -> None:
    pretend(board, **board_does)
    ran = build(bundle)
    assert ran.code == 1
    assert said.replace("\\\\", "\\") in ran.error
    assert engines(bundle) == []


def test_an_engine_of_another_model_is_not_kept(proven: Path, board: Board, build: Build) -> None:
    another = """sed -i 's/"onnx_sha256": "..../"onnx_sha256": "0000/' bundle/engines/*.json"""
    pretend(board, build=f"exec {REAL} build bundle --json", check=f"{another}; echo '{{}}'; touch check.xml")
    ran = build(proven)
    assert (ran.code, engines(proven)) == (1, [])
    assert f"{ENGINE}.engine from board cannot be used: it is of another model.onnx" in ran.error


@pytest.mark.parametrize("answer", ["{}", '{"bundles": [{"backends": []}]}', '{"bundles": [{"backends": [{}, {}]}]}'])
def test_a_check_without_its_report_is_told_and_nothing_is_kept(
    proven: Path, board: Board, build: Build, answer: str
) -> None:
    pretend(board, build=f"exec {REAL} build bundle --json", check=f"echo '{answer}'; touch check.xml")
    ran = build(proven)
    assert (ran.code, engines(proven)) == (1, [])
    assert f"{ENGINE}.engine from board cannot be used: " in ran.error


# --- a board that does not do ---


@pytest.mark.parametrize(
    ("program", "script", "code", "said"),
    [
        ("df", "echo 'Filesystem 1024-blocks Used Available Capacity Mounted'; echo '/dev/x y 99 98 1 99% /'", 3,
         "expected 67 MB of free disk on board for the bundle and its engine, got 0 MB in "),
        ("uname", "echo Linux armv7l", 3, "expected Linux x86_64 or Linux aarch64, got 'Linux armv7l' on board; "),
        ("resnet-deploy", "exec nonsense", 3, "expected resnet-deploy or ~/resnet/bin/resnet-deploy on board, got none"),
        ("resnet-deploy", "echo 'resnet-deploy, version 99.3.1'", 3,
         f"expected resnet-deploy {VERSION} on board, as here, got 99.3.1; install the same version on both"),
        ("resnet-deploy", "echo 'no module x' >&2; exit 1", 3,
         "expected a version from resnet-deploy --version on board, got exit code 1: "),
        ("mktemp", "echo 'mktemp: no room' >&2; exit 1", 1,
         "cannot make a temporary folder on board: mktemp: no room; free some room there, or set TMPDIR"),
    ],
)  # fmt: skip
def test_a_board_that_will_not_do_is_refused_before_anything_is_copied(
    bundle: Path, board: Board, build: Build, program: str, script: str, code: int, said: str
) -> None:
    pretend(board)
    board.put_program(program, script)
    ran = build(bundle)
    assert ran.code == code
    assert said in ran.error
    assert "copy" not in ran.err


def test_dla_is_refused_on_what_is_no_jetson(bundle: Path, board: Board, build: Build, manifest: Manifest) -> None:
    board.put_program("uname", "echo Linux x86_64")
    (bundle / "manifest.json").unlink()
    write_manifest(bundle, replace(manifest, precision="fp16", batch=BatchRange(2, 2, 2)))
    ran = build(bundle, "--dla", "0")
    assert (ran.code, "expected a Jetson for --dla, got Linux x86_64 on board; " in ran.error) == (2, True)


def test_the_install_is_looked_for_where_the_documentation_puts_it_or_where_it_is_named(
    bundle: Path, board: Board, build: Build
) -> None:
    pretend(board, build="exit 1")
    place = board.folder / "home" / "resnet" / "bin"
    place.mkdir(parents=True)
    (board.folder / "bin" / "resnet-deploy").rename(place / "resnet-deploy")
    assert build(bundle).error.startswith("error: build on board: ")
    assert build(bundle, "--remote-command", "env A=b ~/x").error.startswith(
        "error: expected env A=b ~/x on board, got "
    )
    (place / "resnet-deploy").rename(board.folder / "home" / "two words")
    assert build(bundle, "--remote-command", "'~/two words'").error.startswith("error: build on board: ")


# --- a board that is not reached ---


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("HostName nosuch.invalid", "Could not resolve hostname nosuch.invalid: "),
        ("Port {port}", "Connection refused; see that sshd runs there, and on which port"),
        (
            "UserKnownHostsFile /dev/null",
            "Host key verification failed; ssh does not know its host key: connect by hand",
        ),
        (
            "UserKnownHostsFile {folder}/another",
            "its host key is not the one that ssh knows: if the board was installed",
        ),
        ("IdentityFile {folder}/host\nIdentityAgent none", "Permission denied (publickey); connect by hand with ssh"),
        ("ProxyCommand sleep 20", "timed out; see that it is switched on, and on this network"),
        ("Nonsense yes", "terminating, 1 bad configuration options; "),
    ],
)
def test_a_board_that_ssh_does_not_reach_is_one_line_with_ssh_s_reason(
    bundle: Path, board: Board, build: Build, lines: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ssh, "CONNECT_TIMEOUT_S", 1)
    key = (board.folder / "user.pub").read_text().split()[:2]
    (board.folder / "another").write_text(f"[127.0.0.1]:{board.port} {' '.join(key)}\n")
    text = lines.format(port=free_port(), folder=board.folder)
    if text.startswith("IdentityFile"):  # ssh tries every file that it is told of
        board_key, text = f"IdentityFile {board.folder}/user\n", f"{text}\n"
        config = board.client()
        config.write_text(text + config.read_text().replace(board_key, ""))
    else:
        config = board.client(text)
    ran = build(bundle, config=config)
    assert ran.code == 3
    assert ran.error.startswith("error: ssh does not reach board: ")
    assert said in ran.error


def test_without_ssh_the_package_is_named(
    bundle: Path, board: Board, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    ran = build(bundle)
    assert (ran.code, ran.error) == (
        3,
        "error: --on needs ssh and scp, not found here; install OpenSSH's client",
    )


def test_no_second_command_on_a_connection_is_told(bundle: Path, board: Board, build: Build) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ssh, "RUN", "sleep 0; exit 255")
        ran = build(bundle)
    assert (ran.code, "takes no second command on a connection; raise its MaxSessions" in ran.error) == (3, True)


# --- interrupted ---


def wait_for(path: Path) -> None:
    for _ in range(200):
        if path.exists():
            return
        time.sleep(0.05)
    raise AssertionError(f"no {path}")


def assert_ended(process: int) -> None:
    """The build on the board ends, and its folder goes."""
    for _ in range(200):
        with suppress(ProcessLookupError):
            os.kill(process, 0)
            time.sleep(0.05)
            continue
        return
    raise AssertionError(f"{process} runs on")


SLOW = "echo $$ >{pid}.new; mv {pid}.new {pid}; sleep 60 & wait"
"""A build that takes long, for sh."""


def test_a_connection_that_is_lost_half_way_is_told_and_the_board_clears_away(
    bundle: Path, board: Board, deploy: Callable[..., Ran]
) -> None:
    pid = board.folder / "bin" / "pid"
    pretend(board, build=SLOW.format(pid=pid))

    def lose() -> None:
        wait_for(pid)
        board.drop_connections()

    thread = threading.Thread(target=lose)
    thread.start()
    ran = deploy("build", bundle, "--on", "board", "--ssh-config", board.config)
    thread.join()
    assert ran.code == 3
    assert "the connection to board was lost; nothing was brought back" in ran.error
    assert engines(bundle) == []
    assert_ended(int(pid.read_text()))
    assert_cleared(board)


def assert_cleared(board: Board) -> None:
    for _ in range(200):
        if not board.temporary:
            return
        time.sleep(0.05)
    raise AssertionError(board.temporary)


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGINT, 130),
        pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow),
        pytest.param(signal.SIGKILL, -9, marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_build_ends_there_and_leaves_nothing(
    bundle: Path, board: Board, number: signal.Signals, code: int
) -> None:
    pid = board.folder / "bin" / "pid"
    pretend(board, build=SLOW.format(pid=pid))
    words = [sys.executable, "-m", "exporter.cli.deploy", "build", str(bundle), "--on", "board"]
    with subprocess.Popen(
        [*words, "--ssh-config", str(board.config)],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as process:
        wait_for(pid)
        if number is signal.SIGINT:
            os.killpg(process.pid, number)  # as Ctrl-C does
        else:
            process.send_signal(number)
        _, said = process.communicate(timeout=30)
    assert process.returncode == code
    assert "Traceback" not in said
    assert_ended(int(pid.read_text()))
    assert_cleared(board)
    assert engines(bundle) == []


# --- options ---


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ("--on", "-oProxyCommand=touch owned"),
            "expected --on as user@board or user@board:port, got '-oProxyCommand=",
        ),
        (("--on", "user@-oProxyCommand=x"), "expected --on as "),
        (("--on", "board;id"), "expected --on as "),
        (("--on", "board:0"), "expected --on as "),
        (("--on", "board:65536"), "expected --on as "),
        (("--on", "::1"), "IPv6 in brackets"),
        (("--on", ""), "expected --on as "),
        (("--ssh-config", "/dev/null/x"), "Invalid value for '--ssh-config'"),
        (("--ssh-config", __file__), "--ssh-config is about the machine of --on; give that, or leave --ssh-config out"),
        (("--remote-command", "x"), "--remote-command is about the machine of --on; "),
        (("--on", "board", "--remote-command", "'x"), 'cannot read --remote-command "\'x": No closing quotation; '),
        (("--on", "board", "--remote-command", "-x"), "expected a program in --remote-command, got '-x'; "),
        (
            ("--on", "board", "--timing-cache", "times"),
            "expected --timing-cache as an absolute path on the board, got ",
        ),
        (
            ("--on", "board", "--print-trtexec"),
            "--print-trtexec builds nothing, so there is nothing to do --on a board; ",
        ),
    ],
)
def test_options_that_make_no_sense_are_refused_before_anything_is_done(
    bundle: Path, deploy: Callable[..., Ran], options: tuple[str, ...], said: str
) -> None:
    ran = deploy("build", bundle, *options)
    assert ran.code == 2
    assert said in ran.error
    assert "connect" not in ran.err
    assert not Path("owned").exists()


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("board", ("board", None, None)),
        ("me@10.0.0.7:2222", ("10.0.0.7", "me", 2222)),
        ("me@[fe80::1%eth0]:22", ("fe80::1%eth0", "me", 22)),
    ],
)
def test_addresses(text: str, address: tuple[Any, ...]) -> None:
    found = address_from_text(text)
    assert (found.host, found.user, found.port) == address

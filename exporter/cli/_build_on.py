"""`resnet-deploy build --on`: the options of a build on another machine, and what it prints."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from exporter.cli._common import echo_json, echo_lines
from exporter.cli._help import option_group
from exporter.verification.report.lines import parity_lines
from runtimes.errors import BadInput, PlanError
from runtimes.printable import printable

if TYPE_CHECKING:
    from exporter.deployment.remote.build import RemoteBuild, RemotePlan
    from runtimes.bundle import Bundle
    from runtimes.nvidia.engine_file import EngineFacts

Command = TypeVar("Command", bound=Callable[..., Any])
_board = option_group("Another machine")
OPTIONS = (
    _board(
        "--on",
        metavar="USER@BOARD",
        help="Build and check on that machine, over ssh, with its own install, and bring the engine back."
        " USER@BOARD:PORT names a port.",
    ),
    _board(
        "--remote-command",
        metavar="COMMAND",
        help="What runs resnet-deploy there, such as '~/venv/bin/resnet-deploy'.  [default: from its PATH, or in"
        " ~/resnet]",
    ),
    _board(
        "--ssh-config",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        metavar="FILE",
        help="Configuration of ssh, as ssh -F FILE.  [default: ~/.ssh/config]",
    ),
)
HERE = ("on", "remote_command", "ssh_config", "as_json", "quiet")
"""Options that this machine takes itself; the board's `build` gets all others."""


def on_options(command: Command) -> Command:
    """Add the options of this file to a command."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


def is_on_board(options: dict[str, Any]) -> bool:
    """Is the build to happen on another machine?

    Raises:
        PlanError: the other options of this file are given without `--on`.
    """
    for name, option in (("remote_command", "--remote-command"), ("ssh_config", "--ssh-config")):
        if options["on"] is None and options[name] is not None:
            raise PlanError(f"{option} is about the machine of --on; give that, or leave {option} out")
    return options["on"] is not None


def build_on(bundle: Bundle, options: dict[str, Any], lines: Callable[[Path, EngineFacts], list[str]]) -> None:
    """Build on the machine that `--on` names, and print what came of it; `lines` is what is said of an engine.

    Raises:
        BadInput, PlanError: options that are wrong, or make no sense together.
        ResnetExportError: as `build_on_board`.
    """
    from exporter.deployment.remote.build import build_on_board

    plan = _plan(bundle, options)
    built = build_on_board(plan, lambda line: click.echo(printable(line), err=True))
    if options["as_json"]:
        return echo_json(_document(plan, built))
    answers = parity_lines(built.report) if built.report else [f"{'answers':<12} not checked: {built.not_checked}"]
    echo_lines(
        [
            *lines(built.engine, built.facts),
            *answers,
            f"{'built on':<12} {plan.board.text}, which trusts it; other machines load it with --trust-engine alone",
            f"{'reports':<12} {built.check_json.name}, {built.check_junit.name}, beside the engine",
        ]
    )


def _document(plan: RemotePlan, built: RemoteBuild) -> dict[str, Any]:
    """What `build --json` prints, with the board, and the check's report."""
    import msgspec

    return {
        "board": plan.board.text,
        "engine": str(built.engine),
        "cached": False,
        "parity": msgspec.to_builtins(built.report),
        "check": built.check,
        "check_json": str(built.check_json),
        "check_junit": str(built.check_junit),
        **msgspec.to_builtins(built.facts),
    }


def _plan(bundle: Bundle, options: dict[str, Any]) -> RemotePlan:
    from exporter.deployment.remote.address import address_from_text
    from exporter.deployment.remote.build import RemotePlan

    if options["print_trtexec"]:
        raise PlanError("--print-trtexec builds nothing, so there is nothing to do --on a board; leave one of them out")
    cache = options["timing_cache"]
    if cache is not None and not PurePosixPath(cache).is_absolute():
        raise PlanError(f"expected --timing-cache as an absolute path on the board, got {cache}; give one")
    try:
        command = tuple(shlex.split(options["remote_command"] or ""))
    except ValueError as error:
        raise BadInput(f"cannot read --remote-command {options['remote_command']!r}: {error}; quote it once") from error
    if command and command[0].startswith("-"):
        raise BadInput(f"expected a program in --remote-command, got {command[0]!r}; begin with its path")
    return RemotePlan(
        bundle,
        address_from_text(options["on"]),
        _arguments(click.get_current_context()),
        options["backend"],
        needs_dla=options["dla_core"] is not None,
        command=command,
        ssh_config=options["ssh_config"],
        quiet=options["quiet"],
    )


def _arguments(context: click.Context) -> tuple[str, ...]:
    """The options that were given and are the board's, as words."""
    words: list[str] = []
    for one in context.command.params:
        given = context.get_parameter_source(one.name or "") is ParameterSource.COMMANDLINE
        if not isinstance(one, click.Option) or one.name in HERE or not given:
            continue
        value = context.params[one.name or ""]
        if one.is_flag:
            words.append(one.opts[0] if value else one.secondary_opts[0])
        else:
            words += [f"{one.opts[0]}={item}" for item in (value if one.multiple else [value])]
    return tuple(words)

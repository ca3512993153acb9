"""`resnet-deploy bench`: how fast bundles run on each backend, measured in interleaved rounds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from exporter.cli._common import echo_json, echo_lines, status, warn_of_power
from exporter.cli._files import check_output_files, write_output
from exporter.cli._help import GroupedCommand, option_group
from exporter.cli._options import (
    backend_group,
    output_group,
    provider_option,
    quiet_option,
    threads_option,
    timeout_option,
    trust_option,
    url_option,
)
from exporter.verification.report.bench_lines import bench_lines, compare_lines
from runtimes.errors import BackendUnavailable, PlanError, ResnetExportError
from runtimes.printable import printable

if TYPE_CHECKING:
    from exporter.verification.bench.plan import BenchPlan
    from runtimes.benchmark.results import Result

EPILOG = """\b
Examples:
  resnet-deploy bench resnet50-int8        # every backend that is installed
  resnet-deploy bench resnet50-int8 --backend onnxruntime --batch 1,8 --threads 1
  resnet-deploy bench resnet50-int8 --against resnet50-fp32 --min-speedup 1.5
  resnet-deploy bench resnet50-int8 --json > new.json
  resnet-deploy bench resnet50 --backend onnxruntime --backend triton \\
      --url grpc://host:8001/resnet50 --concurrency 1,4,16
  resnet-deploy bench --compare old.json new.json

\b
Exit codes: 0 measured, 1 failed, 2 wrong usage, 3 a backend that was named
            is not here, 4 slower than --min-speedup asks for, or undecided."""

_measuring, _comparing = map(option_group, ("Measuring", "Comparing"))


def _sizes(_context: click.Context, option: click.Parameter, text: str | None) -> tuple[int, ...] | None:
    """The numbers of `--batch 1,8,32`, or of `--concurrency 1,4`."""
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise PlanError(f"expected {option.opts[0]} as whole numbers, got '{text}'; for example 1,8,32") from None


@click.command(cls=GroupedCommand, epilog=EPILOG)
@click.argument("bundles", metavar="[BUNDLE]...", nargs=-1, type=click.Path(path_type=Path))
@backend_group(
    "--backend",
    "backends",
    multiple=True,
    metavar="NAME|all",
    help="Backend to measure; repeatable.  [default: every installed backend]",
)
@provider_option
@url_option
@timeout_option
@threads_option
@trust_option
@_measuring(
    "--batch",
    "batches",
    callback=_sizes,
    metavar="N,...",
    help="Batch sizes.  [default: the bundle's smallest, the one that it is tuned for, and its largest]",
)
@_measuring(
    "--concurrency",
    callback=_sizes,
    default="1",
    show_default=True,
    metavar="N,...",
    help="Requests that the server of --url gets at a time, each number measured on its own.",
)
@_measuring(
    "--data",
    metavar="SOURCE",
    help="Pictures to read from files; those of a URL are copied first.  [default: mosaics, as large as photographs]",
)
@_measuring("--rounds", type=int, default=10, show_default=True, metavar="N", help="Number of rounds.")
@_measuring(
    "--seconds",
    type=float,
    default=0.25,
    show_default=True,
    metavar="S",
    help="Shortest time of each measurement in each round.",
)
@_measuring(
    "--warm-up", type=int, metavar="N", help="Calls before the first round.  [default: until their time has settled]"
)
@_measuring(
    "--variants/--no-variants",
    default=True,
    help="Measure PyTorch in BF16 and with torch.compile, too, which compiles for minutes.  [default: variants]",
)
@_comparing(
    "--against", metavar="BUNDLE", type=click.Path(path_type=Path), help="Measure another bundle in the same rounds."
)
@_comparing(
    "--min-speedup",
    type=float,
    metavar="X",
    help="Fail with exit code 4 unless BUNDLE is at least X times as fast as that of --against.",
)
@_comparing(
    "--compare",
    nargs=2,
    type=click.Path(path_type=Path),
    metavar="FILE FILE",
    help="Compare two results of --json, the second with the first; measure nothing.",
)
@output_group("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout, with every round.")
@output_group(
    "--html",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write a page with plots and tables, in one file.",
)
@quiet_option
def bench(bundles: tuple[Path, ...], **options: Any) -> None:
    """Measure how fast each BUNDLE runs on every backend.

    Each backend runs in a process of its own, and all take turns in each round. Gives the time to load, peak memory,
    latency, images a second of the device alone, with copies and from picture files, and the share of what the machine
    reaches in a large matrix product. A fastest one is named only where the rounds decide it; `--backend auto` of the
    other commands then takes it.
    """
    if options["compare"] is not None:
        return _compare(bundles, options)
    plan = _plan(bundles, options)
    from exporter.verification.bench.run import bench as measure
    from exporter.verification.bench.speedup import check_speedup
    from exporter.verification.report import load_page
    from runtimes.benchmark.result_file import json_from_result
    from runtimes.benchmark.winners import keep_rankings

    html = options["html"]
    if html is not None:
        load_page()
    check_output_files({"--html": html}, [bundle.folder for bundle in plan.bundles])
    with status(quiet=options["quiet"]) as progress:
        result = measure(plan, progress)
    if html is not None:
        from exporter.verification.report.bench_page import html_from_result

        write_output(html, html_from_result(result), "--html")
    if options["as_json"]:
        click.echo(json_from_result(result).decode(), nl=False)
    else:
        echo_lines(bench_lines(result))
    _check_measured(result)
    if not options["quiet"]:
        warn_of_power(result.machine.power, "the figures are not the most that this board reaches")
    problem = keep_rankings(result)
    if problem and not options["quiet"]:
        click.echo(f"not kept for --backend auto: {printable(problem)}", err=True)
    if options["against"] is not None:
        check_speedup(result, options["min_speedup"])
    _check_named(result, [name for name in options["backends"] if name != "all"])


def _plan(bundles: tuple[Path, ...], options: dict[str, Any]) -> BenchPlan:
    """What to measure; refuses contradictions before a bundle is read."""
    against, least = options["against"], options["min_speedup"]
    if not bundles:
        raise PlanError("expected a bundle to measure, got none; name one, or give --compare two results")
    if least is not None and against is None:
        raise PlanError("expected --against with --min-speedup, got none; name the bundle to be faster than")
    if least is not None and not least > 0:  # nan too
        raise PlanError(f"expected --min-speedup above 0, got {least:g}")
    if against is not None and len(bundles) > 1:
        raise PlanError(f"expected one bundle with --against, got {len(bundles)}; leave the others out")
    from exporter.verification.bench.plan import BenchPlan
    from runtimes._open import backend_names
    from runtimes.bundle import Bundle
    from runtimes.errors import UnknownName
    from runtimes.nvidia.trust import trusted_engines

    backends = tuple(dict.fromkeys(options["backends"]))
    for name in backends:
        if name != "all" and name not in backend_names():
            raise UnknownName("backend", name, (*backend_names(), "all"))
    opened = tuple(Bundle.open(one) for one in (*bundles, *(() if against is None else (against,))))
    for one in opened:
        one.check_accepted()
    return BenchPlan(
        bundles=opened,
        backends=_named_backends(backends),
        provider=options["provider"],
        tuning=options["tuning"],
        batches=options["batches"],
        rounds=options["rounds"],
        seconds=options["seconds"],
        warm_up=options["warm_up"],
        data=options["data"],
        variants=options["variants"],
        trust_engines=tuple(sorted(trusted_engines(options["trust_engines"]))),
        timeout_s=options["timeout"],
        url=options["url"],
        concurrency=tuple(dict.fromkeys(options["concurrency"])),
    )


def _named_backends(backends: tuple[str, ...]) -> tuple[str, ...] | None:
    """None for every backend of this machine, beside which a server's may be named."""
    from runtimes._open import local_backend_names
    from runtimes.server_url import BACKEND

    if "all" not in backends:
        return backends or None
    return (*local_backend_names(), BACKEND) if BACKEND in backends else None


def _compare(bundles: tuple[Path, ...], options: dict[str, Any]) -> None:
    context = click.get_current_context()
    given = [name for name in options if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE]
    if bundles or set(given) - {"compare", "as_json", "quiet"}:
        raise PlanError("expected two results and nothing to measure with --compare; leave the rest out")
    from runtimes.benchmark.compare import compare_results
    from runtimes.benchmark.result_file import result_from_file

    found = compare_results(*map(result_from_file, options["compare"]))
    if options["as_json"]:
        import msgspec

        echo_json(msgspec.to_builtins(found))
    else:
        echo_lines(compare_lines(found))


def _check_named(result: Result, names: list[str]) -> None:
    """Fail where a backend that was named is not here; with `all`, those that are not here are left out.

    Raises:
        BackendUnavailable: names the first that is not; its entry says why.
    """
    for name in names:
        entries = [one for one in result.entries if one.contender.backend == name]
        if entries and all(one.verdict == "not here" for one in entries):
            raise BackendUnavailable(f"{name} was not measured, for it is not here; its entry says why, and what to do")


def _check_measured(result: Result) -> None:
    """Fail where nothing at all was measured.

    Raises:
        BackendUnavailable: nothing is here.
        ResnetExportError: all failed.
    """
    if any(one.ok for one in result.entries):
        return
    said = "; ".join(f"{one.contender.name}: {one.reason}" for one in result.entries)
    if all(one.verdict == "not here" for one in result.entries):
        raise BackendUnavailable(f"expected a backend that can run it, got none: {said}")
    raise ResnetExportError(f"no backend could be measured: {said}")

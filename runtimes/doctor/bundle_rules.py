"""Rules on a bundle that was asked about: can it be built and run here, and is there room for it?"""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from runtimes.board.memory import MIB
from runtimes.doctor.facts import BackendFacts, Facts
from runtimes.doctor.precisions import precisions_of
from runtimes.doctor.rule import Case, Rule, Severity

BUILDERS = ("tensorrt", "tensorrt-rtx")


def builds(facts: Facts, name: str) -> bool:
    """Can a backend's engines be built here? TensorRT needs the GPU, TensorRT-RTX none."""
    one = facts.backend(name)
    return one.loads and (one.runs or name == "tensorrt-rtx") if name in BUILDERS else False


def _builders(facts: Facts) -> list[str]:
    return [name for name in BUILDERS if builds(facts, name)]


def _rejected(facts: Facts) -> Iterator[Case]:
    if facts.bundle is not None and facts.bundle.rejection:
        yield Case(
            f"its export rejected the bundle: {facts.bundle.rejection}", "see its report.html, and export it again"
        )


def _not_built(facts: Facts) -> Iterator[Case]:
    for name, reason in ({} if facts.bundle is None else facts.bundle.build_refusals).items():
        if facts.bundle is not None and not facts.bundle.rejection and _is_meant(facts, name):
            text, _, remedy = reason.partition("; ")
            yield Case(f"{name} does not build the bundle: {text}", remedy, name, _severity(facts, name))


def _not_run(facts: Facts) -> Iterator[Case]:
    for one in facts.backends:
        if facts.bundle is not None and one.refusal and not facts.bundle.rejection and _is_meant(facts, one.name):
            text, _, remedy = one.refusal.partition("; ")
            yield Case(f"{one.name} does not run the bundle: {text}", remedy, one.name, _severity(facts, one.name))


def _is_meant(facts: Facts, name: str) -> bool:
    """Was a backend asked about, or else does it load here?"""
    return name in facts.asked or (not facts.asked and facts.backend(name).loads)


def _severity(facts: Facts, name: str) -> Severity:
    return "error" if name in facts.asked else "note"


def _precision(facts: Facts) -> Iterator[Case]:
    bundle = facts.bundle
    for one in facts.backends:
        if bundle is None or one.name not in BUILDERS or not one.runs or bundle.precision in precisions_of(facts, one):
            continue
        gpu = facts.nvidia.gpus[0].name if facts.nvidia.gpus else "this GPU"
        yield Case(
            f"{one.name} {one.version} on {gpu} takes no {bundle.precision}",
            "export the model with --fp16 or --int8",
            one.name,
        )


def _memory(facts: Facts) -> Iterator[Case]:
    bundle, free = facts.bundle, facts.system.free_bytes
    if bundle is not None and free is not None and _builders(facts) and free < bundle.memory_bytes:
        yield Case(
            f"a build takes about {size_text(bundle.memory_bytes)} of memory, and {size_text(free)} are free",
            "close other programs, add swap, or export with a smaller largest batch: --batch 1:1:4",
        )


def _disk(facts: Facts) -> Iterator[Case]:
    bundle = facts.bundle
    if bundle is None or bundle.free_disk_bytes is None or not _builders(facts):
        return
    if bundle.free_disk_bytes < bundle.disk_bytes:
        yield Case(
            f"a build writes up to {size_text(bundle.disk_bytes)} beside the bundle, and "
            f"{size_text(bundle.free_disk_bytes)} are free",
            f"make room, or copy the bundle to another disk: cp -r {shlex.quote(bundle.path)} ELSEWHERE",
        )


def _place(facts: Facts) -> Iterator[Case]:
    bundle = facts.bundle
    if bundle is None or not _builders(facts):
        return
    if not bundle.writable:
        yield Case(
            f"{bundle.path}/engines cannot be written, so no engine can be kept",
            f"copy the bundle to a folder of yours: cp -r {shlex.quote(bundle.path)} ~",
        )
    if bundle.key_problem:
        yield Case(
            f"this machine's engine key has no place: {bundle.key_problem.partition('; ')[0]}",
            "export RESNET_EXPORT_ENGINE_KEY=/FOLDER/OF/YOURS/engine.key",
        )


def _simulated(facts: Facts) -> Iterator[Case]:
    bundle = facts.bundle
    if bundle is None or (bundle.precision, bundle.target) != ("int8", "tensorrt") or facts.nvidia.gpus:
        return
    if any(one.runs and one.name == "onnxruntime" for one in facts.backends):
        yield Case(
            "the bundle is INT8 for TensorRT: onnxruntime computes it in floating point, slower than FP32",
            "for a processor export it with --target cpu, or run it with --backend openvino",
            "onnxruntime",
        )


def runs_bundle(facts: Facts, one: BackendFacts) -> bool:
    """Does a backend run the bundle that was asked about, once an engine is built where it needs one?"""
    bundle = facts.bundle
    if not one.runs or bundle is None:
        return one.runs
    if bundle.rejection or one.refusal or one.name in bundle.build_refusals:
        return False
    return one.name not in BUILDERS or bundle.precision in precisions_of(facts, one)


def _unbuilt(facts: Facts) -> Iterator[Case]:
    for one in facts.backends:
        if facts.bundle is not None and one.unbuilt and runs_bundle(facts, one):
            yield Case(
                f"the bundle has no engine that {one.name} loads here",
                f"resnet-deploy build {shlex.quote(facts.bundle.path)} --backend {one.name}",
                one.name,
            )


def serves_bundle(facts: Facts, one: BackendFacts) -> bool:
    """Does a backend run the bundle's own graph here? PyTorch runs the FP32 reference, Triton on another machine."""
    return runs_bundle(facts, one) and one.name not in ("pytorch", "triton")


def _nowhere(facts: Facts) -> Iterator[Case]:
    bundle = facts.bundle
    if bundle is None or facts.asked or bundle.rejection or not facts.backends:
        return
    if any(one.runs for one in facts.backends) and not any(serves_bundle(facts, one) for one in facts.backends):
        yield Case("no backend that is here runs the bundle", "see the reasons above")


def size_text(count: int) -> str:
    """Bytes for people: `512 MiB`, `7.4 GiB`."""
    return f"{count / MIB / 1024:.1f} GiB" if count >= 1024 * MIB else f"{max(1, round(count / MIB))} MiB"


RULES = (
    Rule("DR401", "error", "a bundle that its export rejected", _rejected),
    Rule("DR402", "note", "a bundle that the builder of engines refuses", _not_built),
    Rule("DR403", "note", "a bundle that a backend refuses", _not_run),
    Rule("DR404", "error", "a precision that the GPU or TensorRT has not", _precision),
    Rule("DR405", "warning", "too little memory to build", _memory),
    Rule("DR406", "error", "too little room to build", _disk),
    Rule("DR407", "error", "no place to write an engine, or the key that seals it", _place),
    Rule("DR408", "note", "INT8 that is computed in floating point, slower than FP32", _simulated),
    Rule("DR409", "error", "a bundle that nothing runs", _nowhere),
    Rule("DR410", "note", "a bundle without an engine for this machine", _unbuilt),
)

"""Is a `torch.export` program (`reference.pt2`) nothing but tensors and arithmetic? Looked at before PyTorch reads it; needs no PyTorch.

`torch.export.load` runs code that an archive brings: it unpickles weights, constants and example inputs, loads compiled libraries, evaluates
symbolic sizes as Python, imports what a tree of arguments names, resolves operators by attribute from `torch`, `math` and `operator`, and compiles
the names of values and the guards into a function. So an archive is held against a list of what a program needs, string by string, and PyTorch
is given a new archive that holds what was looked at and nothing else: two readers of one zip file need not agree on what is in it.
(Read in torch 2.9 to 2.14: export/pt2_archive/_package.py, _export/serde/serialize.py, export/_unlift.py, fx/graph.py, utils/_pytree.py.)
"""

from __future__ import annotations

import ast
import io
import json
import math
import pickletools
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from runtimes.errors import BadInput, BundleError

LARGEST_JSON = 64 << 20
"""A ResNet-1202's program has 9 MB of it."""
LARGEST_LINE, LARGEST_EXPRESSION, LARGEST_PICKLE = 1 << 16, 1 << 10, 1 << 20
MODEL, SAMPLES = "models/model.json", "data/sample_inputs/model.pt"
WEIGHTS, CONSTANTS = "data/weights/", "data/constants/"
CONFIGS = {f"{WEIGHTS}model_weights_config.json": WEIGHTS, f"{CONSTANTS}model_constants_config.json": CONSTANTS}
LINES = (".data/version", ".data/serialization_id", "version", "archive_format", "archive_version", "byteorder", "extra/outputs")
PAYLOAD = re.compile(r"data/(weights/weight|constants/tensor)_[0-9]+")

OPERATOR = re.compile(
    r"torch\.ops\.aten\.((?P<name>[a-z][A-Za-z0-9_]*|__i?(and|or|xor|lshift|rshift)__)|(?P<inner>_[a-z]\w*))\.[A-Za-z][A-Za-z0-9_]*", re.ASCII
)
OUTSIDE = ("from_file", "save", "warn", "wait", "set_data", "record_stream", "manual_seed", "set_grad_enabled")
"""Operators of the same namespace that touch files, other threads or PyTorch's own state."""
INNER = re.compile(
    r"_(adaptive_avg_pool|assert_|batch_norm|cast_|cdist|conj|conv|euclidean_dist|fft_|fused_rms_norm|is_all_true|is_any_true|linalg_"
    r"|local_scalar_dense|log_softmax|native_batch_norm_legit|pad_|prelu|reshape_alias|safe_softmax|scaled_dot_product|shape_as_tensor"
    r"|softmax|stack|to_copy|trilinear|unique|unsafe_view|upsample|weight_norm)\w*"
)
"""Of the operators that PyTorch keeps to itself, those that a trace of a network holds. Others trust their arguments."""
ON_SIZES = re.compile(
    r"_operator\.(add|sub|mul|floordiv|mod|truediv|neg|pos|eq|ne|lt|le|gt|ge|and_|or_|not_|getitem)|math\.(ceil|floor|trunc)"
    r"|torch\.sym_(float|int|ite|max|min|not)"
)
AROUND_A_GRAPH = re.compile(r"torch\.ops\.higher_order\.(cond|wrap_with_autocast|wrap_with_set_grad_enabled)")

SYMBOLIC = re.compile(
    r"Symbol|Integer|Rational|Add|Mul|FloorDiv|(Python)?Mod|CleanDiv|CeilDiv|IntTrueDiv|ToFloat|(Trunc|Floor|Ceil)ToInt|Max|Min|Identity"
    r"|Equality|Unequality|StrictLessThan|LessThan|StrictGreaterThan|GreaterThan|And|Or|Not|true|false"
)
"""No power: a tower of them is a number that never ends."""
ASSUMPTIONS = ("integer", "positive", "nonnegative", "negative", "nonpositive", "nonzero")
EXPRESSION_PARTS = (ast.Expression, ast.Call, ast.Name, ast.Load, ast.Constant, ast.keyword, ast.UnaryOp, ast.USub)
CONTAINERS = ("builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict")
PLAIN_PICKLE = re.compile(r"torch\._utils _rebuild_tensor(_v2)?|torch (\w+Storage|Size|device|(bool|b?float|int|uint)\d*)|collections OrderedDict")
DESCRIBED = ("nn_module_stack", "torch_fn", "stack_trace", "from_node")
"""What a node says of where it is from: kept by PyTorch as text, and not looked up."""
FOREIGN = ("custom_obj", "as_custom_obj", "token", "constant_input", "custom_obj_values", "guards_code")


class _Refused(Exception):
    """What is in the archive that does not belong there."""


def plain_program(path: Path) -> io.BytesIO:
    """The program at `path` as an archive of the parts that were looked at, to be given to `torch.export.load`.

    Holds the file's content in memory once.

    Raises:
        BadInput: the file is no archive, or is cut short.
        BundleError: it holds something else than tensors, ATen operators and what describes them; nothing of it was run.
    """
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            parts = _parts(archive, path.stat().st_size)
        _check_program(parts)
    except _Refused as problem:
        raise BundleError(
            f"{path} holds {problem}, expected plain tensors and ATen operators alone; nothing of it was run: do not use this file"
        ) from problem
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError, RecursionError, LookupError, TypeError, AttributeError) as error:
        said = f"{type(error).__name__}: {error}".splitlines()[0]
        raise BadInput(f"pytorch cannot load {path}: expected a torch.export program (.pt2), got {said}") from error
    return _packed(parts)


def _parts(archive: zipfile.ZipFile, size: int) -> dict[str, bytes]:
    """Every entry by its name below the archive's one folder; all are stored as they are, so that together they are no larger than the file."""
    entries = archive.infolist()
    if sum(entry.file_size for entry in entries) > size:
        raise _Refused("entries that lie in one another, or are packed")
    parts: dict[str, bytes] = {}
    for entry in entries:
        root, _, name = entry.filename.partition("/")
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 or root != entries[0].filename.partition("/")[0] or name in parts:
            raise _Refused(f"an entry {entry.filename!r} that is packed, encrypted, double or outside of its folder")
        if entry.file_size > _most(name):
            raise _Refused(f"an entry {entry.filename!r} of {entry.file_size} bytes")
        parts[name] = archive.read(entry)
    if MODEL not in parts:
        raise ValueError(f"no {MODEL} in it")
    return parts


def _most(name: str) -> float:
    """The most bytes that an entry may have."""
    if PAYLOAD.fullmatch(name):
        return math.inf
    limits: dict[str, float] = {MODEL: LARGEST_JSON, SAMPLES: math.inf, **dict.fromkeys(CONFIGS, LARGEST_JSON), **dict.fromkeys(LINES, LARGEST_LINE)}
    if name not in limits:
        raise _Refused(f"an entry {name!r}")
    return limits[name]


def _packed(parts: dict[str, bytes]) -> io.BytesIO:
    """Takes the parts out of the dictionary as it goes, so that they are not in memory twice."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as packed:
        for name in list(parts):
            content = parts.pop(name)
            packed.writestr(zipfile.ZipInfo(f"reference/{name}"), b"" if name == SAMPLES else content)
    buffer.seek(0)
    return buffer


def _check_program(parts: Mapping[str, bytes]) -> None:
    for name in LINES:
        if not parts.get(name, b"").decode().replace("\n", "").isprintable():
            raise _Refused(f"an entry {name!r} that is no text")
    for name, folder in CONFIGS.items():
        for key, payload in json.loads(parts[name])["config"].items():
            _check_payload(key, payload, folder, parts)
    _check(json.loads(parts[MODEL]), "", "")
    if parts.get(SAMPLES):
        _check_samples(parts[SAMPLES])


def _check_payload(key: str, payload: dict[str, Any], folder: str, parts: Mapping[str, bytes]) -> None:
    """One tensor's description: its values lie in the archive as they are."""
    _check(payload, "", "")
    _check_path(key)
    place = f"{folder}{payload['path_name']}"
    if payload["use_pickle"] is not False or not PAYLOAD.fullmatch(place):
        raise _Refused(f"'{key}' as a pickle or an object, {payload['path_name']!r}")
    sizes = [size["as_int"] for size in payload["tensor_meta"]["sizes"]]
    if not all(type(size) is int and size >= 0 for size in sizes) or math.prod(sizes) > len(parts[place]):
        raise _Refused(f"'{key}' of more values than are there")


def _check_samples(data: bytes) -> None:
    """Example inputs are left out of what PyTorch is given; those that would be more than tensors are refused all the same."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        pickles = [entry for entry in archive.infolist() if entry.filename.endswith("data.pkl")]
        if len(pickles) != 1 or pickles[0].file_size > LARGEST_PICKLE:
            raise _Refused("example inputs that are no tensors")
        content = archive.read(pickles[0])
    for opcode, argument, _ in pickletools.genops(content):
        if opcode.name in ("STACK_GLOBAL", "INST", "OBJ") or opcode.name.startswith("EXT"):
            raise _Refused("example inputs that are no plain tensors")
        if opcode.name == "GLOBAL" and not PLAIN_PICKLE.fullmatch(str(argument)):
            raise _Refused(f"example inputs that call {str(argument)!r}")


def _check(value: Any, key: str, above: str) -> None:
    """Walk the program's JSON; `key` is what the value is called, `above` what that one's object is called. Fields that a later PyTorch adds pass
    where they are numbers or names."""
    if isinstance(value, str):
        checks: Mapping[str, Callable[[str], None]] = {
            "target": _check_operator,
            "as_operator": _check_operator,
            "expr_str": _check_expression,
            "in_spec": _check_tree,
            "out_spec": _check_tree,
            "parameter_name": _check_path,
            "buffer_name": _check_path,
            "tensor_constant_name": _check_path,
            "fqn": _check_path,
            "torch_version": _check_version,
            "as_float": _check_float,
        }
        if key == "as_string" and above == "arg":
            return _check_text(value)
        return checks.get(key, _check_name)(value)
    if isinstance(value, list):
        if key in FOREIGN and value:
            raise _Refused(f"{key}, {str(value)[:80]!r}")
        for one in value:
            _check(one, key, above)
    elif isinstance(value, dict):
        for inner, one in value.items():
            if inner in FOREIGN and one:
                raise _Refused(f"{inner}, {str(one)[:80]!r}")
            if key == "metadata" and inner in DESCRIBED and isinstance(one, str):
                continue
            if key == "range_constraints" and not re.fullmatch(r"[a-z]+[0-9]{1,6}", inner):
                raise _Refused(f"a size {inner[:80]!r}")
            _check_path(inner)
            _check(one, inner, key)


def _check_operator(text: str) -> None:
    found = OPERATOR.fullmatch(text)
    if found and (found["name"] not in OUTSIDE if found["name"] else INNER.fullmatch(found["inner"])):
        return
    if not ON_SIZES.fullmatch(text) and not AROUND_A_GRAPH.fullmatch(text):
        raise _Refused(f"an operator {text[:80]!r}")


def _check_expression(text: str) -> None:
    """A size as sympy writes it, which PyTorch has Python evaluate: calls of a few functions on symbols and whole numbers."""
    try:
        parts = list(ast.walk(ast.parse(text, mode="eval"))) if len(text) <= LARGEST_EXPRESSION and text.isascii() else []
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        parts = []
    if not parts or not all(isinstance(part, EXPRESSION_PARTS) and _is_symbolic(part) for part in parts):
        raise _Refused(f"a size {text[:80]!r}")


def _is_symbolic(part: ast.AST) -> bool:
    if isinstance(part, ast.Call):
        return isinstance(part.func, ast.Name)
    if isinstance(part, ast.Name):
        return SYMBOLIC.fullmatch(part.id) is not None
    if isinstance(part, ast.keyword):
        return part.arg in ASSUMPTIONS and isinstance(part.value, ast.Constant) and isinstance(part.value.value, bool)
    if isinstance(part, ast.Constant):
        return isinstance(part.value, int) or (isinstance(part.value, str) and re.fullmatch(r"[a-z]+[0-9]+", part.value) is not None)
    return True


def _check_tree(text: str) -> None:
    """How arguments nest: tuples, lists and dictionaries. Of other types PyTorch imports what the text names."""
    protocol, root = json.loads(text)
    waiting = [root]
    while waiting:
        tree = waiting.pop()
        waiting += tree["children_spec"]
        kind, context = tree["type"], tree["context"]
        if protocol != 1 or kind not in (None, *CONTAINERS):
            raise _Refused(f"arguments of a type {str(kind)[:80]!r}")
        for name in [] if context is None else json.loads(context) or []:
            _check_name(name)


def _check_name(text: object) -> None:
    """A name that PyTorch may compile: an identifier, none of Python's own."""
    if not isinstance(text, str) or (text and not text.isidentifier()) or text.startswith("__"):
        raise _Refused(f"a name {str(text)[:80]!r}")


def _check_path(text: str) -> None:
    """A name of a module or parameter: what a ModuleDict may call its parts, too, as `3x3`."""
    if not re.fullmatch(r"[\w .:/+-]*", text) or any(part.startswith("__") for part in text.split(".")):
        raise _Refused(f"a name {text[:80]!r}")


def _check_text(text: str) -> None:
    if not text.isprintable() or "\\" in text:
        raise _Refused(f"a text {text[:80]!r}")


def _check_version(text: str) -> None:
    if not re.fullmatch(r"[\w.+<=-]*", text):
        raise _Refused(f"a version {text[:80]!r}")


def _check_float(text: str) -> None:
    if text not in ("Infinity", "-Infinity", "NaN"):
        raise _Refused(f"a number {text[:80]!r}")

"""Check the strings of a `torch.export` program: its operators, sizes and names, each against what a program needs."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

LARGEST_EXPRESSION = 1 << 10
OPERATOR = re.compile(
    r"torch\.ops\.aten\.((?P<name>[a-z][A-Za-z0-9_]*|__i?(and|or|xor|lshift|rshift)__)|(?P<inner>_[a-z]\w*))"
    r"\.[A-Za-z][A-Za-z0-9_]*",
    re.ASCII,
)
OUTSIDE = ("from_file", "save", "warn", "wait", "set_data", "record_stream", "manual_seed", "set_grad_enabled")
"""Operators of the same namespace that touch files, other threads or PyTorch's own state."""
INNER = re.compile(
    r"_(adaptive_avg_pool|assert_|batch_norm|cast_|cdist|conj|conv|euclidean_dist|fft_|fused_rms_norm|is_all_true"
    r"|is_any_true|linalg_|local_scalar_dense|log_softmax|native_batch_norm_legit|pad_|prelu|reshape_alias|safe_softmax"
    r"|scaled_dot_product|shape_as_tensor|softmax|stack|to_copy|trilinear|unique|unsafe_view|upsample|weight_norm)\w*"
)
"""Of the operators that PyTorch keeps to itself, those that a trace of a network holds. Others trust their
arguments."""
ON_SIZES = re.compile(
    r"_operator\.(add|sub|mul|floordiv|mod|truediv|neg|pos|eq|ne|lt|le|gt|ge|and_|or_|not_|getitem)"
    r"|math\.(ceil|floor|trunc)|torch\.sym_(float|int|ite|max|min|not)"
)
AROUND_A_GRAPH = re.compile(r"torch\.ops\.higher_order\.(cond|wrap_with_autocast|wrap_with_set_grad_enabled)")

SYMBOLIC = re.compile(
    r"Symbol|Integer|Rational|Add|Mul|FloorDiv|(Python)?Mod|CleanDiv|CeilDiv|IntTrueDiv|ToFloat"
    r"|(Trunc|Floor|Ceil)ToInt|Max|Min|Identity"
    r"|Equality|Unequality|StrictLessThan|LessThan|StrictGreaterThan|GreaterThan|And|Or|Not|true|false"
)
"""No power: a tower of them is a number that never ends."""
ASSUMPTIONS = ("integer", "positive", "nonnegative", "negative", "nonpositive", "nonzero")
EXPRESSION_PARTS = (ast.Expression, ast.Call, ast.Name, ast.Load, ast.Constant, ast.keyword, ast.UnaryOp, ast.USub)
CONTAINERS = ("builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict")
DESCRIBED = ("nn_module_stack", "torch_fn", "stack_trace", "from_node")
"""What a node says of where it is from: kept by PyTorch as text, and not looked up."""
FOREIGN = ("custom_obj", "as_custom_obj", "token", "constant_input", "custom_obj_values", "guards_code")


class Refused(Exception):
    """The program holds something that does not belong there: the message says what."""


def check_field(value: Any, key: str, above: str) -> None:
    """Check a value of the program's JSON and all that is in it. Fields that a later PyTorch adds pass where they are
    numbers or names.

    Args:
        key: the value's field.
        above: the field of the object that it stands in.

    Raises:
        Refused: a string is none that a program needs there.
    """
    if isinstance(value, str):
        checks: Mapping[str, Callable[[str], None]] = {
            "target": _check_operator,
            "as_operator": _check_operator,
            "expr_str": _check_expression,
            "in_spec": _check_tree,
            "out_spec": _check_tree,
            "parameter_name": check_path,
            "buffer_name": check_path,
            "tensor_constant_name": check_path,
            "fqn": check_path,
            "torch_version": _check_version,
            "as_float": _check_float,
        }
        if key == "as_string" and above == "arg":
            return _check_text(value)
        return checks.get(key, _check_name)(value)
    if isinstance(value, list):
        if key in FOREIGN and value:
            raise Refused(f"{key}, {str(value)[:80]!r}")
        for one in value:
            check_field(one, key, above)
    elif isinstance(value, dict):
        for inner, one in value.items():
            if inner in FOREIGN and one:
                raise Refused(f"{inner}, {str(one)[:80]!r}")
            if key == "metadata" and inner in DESCRIBED and isinstance(one, str):
                continue
            if key == "range_constraints" and not re.fullmatch(r"[a-z]+[0-9]{1,6}", inner):
                raise Refused(f"a size {inner[:80]!r}")
            check_path(inner)
            check_field(one, inner, key)


def _check_operator(text: str) -> None:
    found = OPERATOR.fullmatch(text)
    if found and (found["name"] not in OUTSIDE if found["name"] else INNER.fullmatch(found["inner"])):
        return
    if not ON_SIZES.fullmatch(text) and not AROUND_A_GRAPH.fullmatch(text):
        raise Refused(f"an operator {text[:80]!r}")


def _check_expression(text: str) -> None:
    """Check a symbolic size, which PyTorch lets Python evaluate: only calls of a few sympy functions on symbols and
    whole numbers."""
    try:
        parts = (
            list(ast.walk(ast.parse(text, mode="eval"))) if len(text) <= LARGEST_EXPRESSION and text.isascii() else []
        )
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        parts = []
    if not parts or not all(isinstance(part, EXPRESSION_PARTS) and _is_symbolic(part) for part in parts):
        raise Refused(f"a size {text[:80]!r}")


def _is_symbolic(part: ast.AST) -> bool:
    if isinstance(part, ast.Call):
        return isinstance(part.func, ast.Name)
    if isinstance(part, ast.Name):
        return SYMBOLIC.fullmatch(part.id) is not None
    if isinstance(part, ast.keyword):
        return part.arg in ASSUMPTIONS and isinstance(part.value, ast.Constant) and isinstance(part.value.value, bool)
    if isinstance(part, ast.Constant):
        return isinstance(part.value, int) or (
            isinstance(part.value, str) and re.fullmatch(r"[a-z]+[0-9]+", part.value) is not None
        )
    return True


def _check_tree(text: str) -> None:
    """Check how arguments nest: only tuples, lists and dictionaries. For other types PyTorch would import what the text
    names."""
    protocol, root = json.loads(text)
    waiting = [root]
    while waiting:
        tree = waiting.pop()
        waiting += tree["children_spec"]
        kind, context = tree["type"], tree["context"]
        if protocol != 1 or kind not in (None, *CONTAINERS):
            raise Refused(f"arguments of a type {str(kind)[:80]!r}")
        for name in [] if context is None else json.loads(context) or []:
            _check_name(name)


def _check_name(text: object) -> None:
    """Check a name that PyTorch may compile: an identifier that does not start with two underscores."""
    if not isinstance(text, str) or (text and not text.isidentifier()) or text.startswith("__"):
        raise Refused(f"a name {str(text)[:80]!r}")


def check_path(text: str) -> None:
    """Check the name of a module or parameter, which may also be a ModuleDict's key, as `3x3`.

    Raises:
        Refused: it is no such name.
    """
    if not re.fullmatch(r"[\w .:/+-]*", text) or any(part.startswith("__") for part in text.split(".")):
        raise Refused(f"a name {text[:80]!r}")


def _check_text(text: str) -> None:
    if not text.isprintable() or "\\" in text:
        raise Refused(f"a text {text[:80]!r}")


def _check_version(text: str) -> None:
    if not re.fullmatch(r"[\w.+<=-]*", text):
        raise Refused(f"a version {text[:80]!r}")


def _check_float(text: str) -> None:
    if text not in ("Infinity", "-Infinity", "NaN"):
        raise Refused(f"a number {text[:80]!r}")

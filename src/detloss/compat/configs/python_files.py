"""Configuration files in Python, read without executing them: their syntax tree is evaluated for literals only."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from typing import Any

__all__ = ["ConfigFileError", "evaluate"]

ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
SIGNS: dict[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
    ast.Not: operator.not_,
}
BASE = "_base_"
LARGEST_EXPONENT = 100
LARGEST_BASE = 1e6
LONGEST = 100_000  # elements or characters of what is put together
ALLOWED = (
    "a literal, dict(), list(), tuple(), float(), a name assigned before or an entry of it, an f-string of these, "
    "arithmetic on numbers, or sequences joined by +"
)
Inherit = Callable[[Any], dict[str, Any]]


class ConfigFileError(ValueError):
    """A configuration file that cannot be read, with file and line."""


def evaluate(text: str, where: str, inherit: Inherit | None = None) -> dict[str, Any]:
    """The names that a configuration file assigns, by name.

    Args:
        text: the source.
        where: name of the file, for messages.
        inherit: what ``_base_`` stands for from where it is assigned, so that ``_base_.model`` can be read.

    Raises:
        ConfigFileError: a syntax error, or anything but assignments of literals, with file and line.

    >>> evaluate("lr = 2 * 1e-3\\nhead = dict(type='RetinaHead', strides=[8, 16])", "retina.py")
    {'lr': 0.002, 'head': {'type': 'RetinaHead', 'strides': [8, 16]}}
    """
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError) as error:
        raise ConfigFileError(f"{where}:{getattr(error, 'lineno', None) or 1}: not valid Python ({error})") from None
    except (RecursionError, MemoryError):
        raise ConfigFileError(f"{where}:1: nested too deeply to be read") from None
    reader = _Reader(where, inherit)
    try:
        for statement in tree.body:
            reader.statement(statement)
    except RecursionError:
        raise ConfigFileError(f"{where}:1: nested too deeply to be read") from None
    return {name: value for name, value in reader.names.items() if not name.startswith("__")}


class _Reader:
    """Evaluates statements one by one; ``names`` holds what they assigned."""

    def __init__(self, where: str, inherit: Inherit | None) -> None:
        self.where = where
        self.inherit = inherit
        self.names: dict[str, Any] = {}

    def error(self, node: ast.AST, text: str) -> ConfigFileError:
        """The error for a node, with file, line and source."""
        source = ast.unparse(node).splitlines()[0]
        return ConfigFileError(
            f"{self.where}:{getattr(node, 'lineno', 1)}: {text}; got {source[:80]!r}. Configuration files are read, not executed"
        )

    def statement(self, node: ast.stmt) -> None:
        """One assignment; a string on its own is a docstring."""
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            return
        if isinstance(node, ast.Assign):
            value = self.value(node.value)
            for target in node.targets:
                self._assign(target, value)
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            self._assign(node.target, self.value(node.value))
        else:
            raise self.error(node, "expected an assignment name = value")

    def _assign(self, target: ast.expr, value: Any) -> None:
        if isinstance(target, ast.Name):
            self.names[target.id] = self.inherit(value) if target.id == BASE and self.inherit else value
        elif isinstance(target, (ast.Tuple, ast.List)) and isinstance(value, (tuple, list)) and len(target.elts) == len(value):
            for part, own in zip(target.elts, value, strict=True):
                self._assign(part, own)
        else:
            raise self.error(target, "expected a name to assign to")

    def value(self, node: ast.expr) -> Any:
        """The value of an expression."""
        if isinstance(node, ast.Constant) and not isinstance(node.value, (bytes, complex, type(...))):
            return node.value
        if isinstance(node, ast.Name):
            if node.id not in self.names:
                raise self.error(node, "expected a name assigned before")
            return self.names[node.id]
        if isinstance(node, ast.Set) and len(node.elts) == 1 and isinstance(node.elts[0], ast.Set):
            return self.value(*node.elts[0].elts)  # {{_base_.model}}
        if isinstance(node, (ast.List, ast.Tuple, ast.Set)):
            made = self._elements(node.elts)
            return made if isinstance(node, ast.List) else tuple(made)
        if isinstance(node, ast.Dict):
            return self._dict(node)
        if isinstance(node, ast.Call):
            return self._call(node)
        if isinstance(node, (ast.Attribute, ast.Subscript)):
            return self._entry(node)
        if isinstance(node, ast.JoinedStr):
            return self._text(node)
        return self._operation(node)

    def _elements(self, nodes: list[ast.expr]) -> list[Any]:
        made: list[Any] = []
        for node in nodes:
            value = self.value(node.value if isinstance(node, ast.Starred) else node)
            if not isinstance(node, ast.Starred):
                made.append(value)
            elif isinstance(value, (list, tuple)):
                made.extend(value)
            else:
                raise self.error(node, "expected a list after *")
        return made

    def _entry(self, node: ast.Attribute | ast.Subscript) -> Any:
        """``model.backbone`` of a dict, which mmengine reads as ``model["backbone"]``, or an element of a list."""
        holder: Any = self.value(node.value)
        key: Any = node.attr if isinstance(node, ast.Attribute) else self.value(node.slice)
        kinds: tuple[type, ...] = (dict,) if isinstance(node, ast.Attribute) else (dict, list, tuple)
        has_entries = isinstance(holder, kinds)
        if has_entries:
            try:
                return holder[key]
            except (KeyError, IndexError, TypeError):
                pass
        raise self.error(node, f"no entry {key!r}")

    def _text(self, node: ast.JoinedStr) -> str:
        parts = []
        for part in node.values:
            if isinstance(part, ast.FormattedValue) and (part.conversion != -1 or part.format_spec is not None):
                raise self.error(node, "f-strings are read without formats")
            value = self.value(part.value if isinstance(part, ast.FormattedValue) else part)
            if not isinstance(value, (str, int, float)):
                raise self.error(node, "f-strings are read of strings and numbers")
            parts.append(str(value))
        return self._bounded(node, "".join(parts), 0)

    def _bounded(self, node: ast.expr, value: Any, further: int) -> Any:
        """``value``, unless it would be very long with ``further`` elements."""
        if len(value) + further > LONGEST:
            raise self.error(node, f"sequences have up to {LONGEST} elements")
        return value

    def _dict(self, node: ast.Dict) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for key, value in zip(node.keys, node.values, strict=True):
            if key is None:
                made.update(self._mapping(value))
            else:
                made[self.value(key)] = self.value(value)
        return made

    def _mapping(self, node: ast.expr) -> dict[str, Any]:
        value = self.value(node)
        if not isinstance(value, dict):
            raise self.error(node, "expected a dict after **")
        return value

    def _call(self, node: ast.Call) -> Any:
        name = node.func.id if isinstance(node.func, ast.Name) else None
        if name == "dict" and not node.args:
            made: dict[str, Any] = {}
            for keyword in node.keywords:
                made.update(self._mapping(keyword.value) if keyword.arg is None else {keyword.arg: self.value(keyword.value)})
            return made
        if name in ("list", "tuple", "float") and len(node.args) <= 1 and not node.keywords:
            given = [self.value(argument) for argument in node.args]
            if name == "float" and all(isinstance(value, (int, float, str)) for value in given):
                return self._number(node, given)
            if name != "float" and all(isinstance(value, (list, tuple, dict)) for value in given):
                return list(*given) if name == "list" else tuple(*given)
        raise self.error(node, f"expected {ALLOWED}")

    def _number(self, node: ast.Call, given: list[Any]) -> float:
        try:
            return float(*given)
        except (ValueError, OverflowError):
            raise self.error(node, "expected a number") from None

    def _operation(self, node: ast.expr) -> Any:
        """Arithmetic on numbers, and sequences that are joined or repeated."""
        function: Callable[..., Any]
        if isinstance(node, ast.UnaryOp) and type(node.op) in SIGNS:
            values, function = [self.value(node.operand)], SIGNS[type(node.op)]
        elif isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC:
            values, function = [self.value(node.left), self.value(node.right)], ARITHMETIC[type(node.op)]
        else:
            raise self.error(node, f"expected {ALLOWED}")
        if isinstance(node, ast.BinOp) and any(isinstance(value, (str, list, tuple)) for value in values):
            return self._joined(node, *values)
        if not all(isinstance(value, (int, float)) for value in values):
            raise self.error(node, "arithmetic is for numbers only")
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow) and _too_large(*values):
            raise self.error(node, f"powers go up to {LARGEST_BASE:g} ** {LARGEST_EXPONENT}")
        try:
            return function(*values)
        except (ArithmeticError, ValueError) as error:
            raise self.error(node, f"cannot be computed ({error})") from None

    def _joined(self, node: ast.BinOp, left: Any, right: Any) -> Any:
        if isinstance(node.op, ast.Add) and type(left) is type(right):
            return self._bounded(node, left, len(right)) + right
        if isinstance(node.op, ast.Mult) and isinstance(right, int) and not isinstance(left, int):
            return self._bounded(node, left, len(left) * (max(right, 1) - 1)) * right
        raise self.error(node, "sequences are joined with their like by + and repeated by * n")


def _too_large(base: float, exponent: float) -> bool:
    return abs(base) > LARGEST_BASE or abs(exponent) > LARGEST_EXPONENT

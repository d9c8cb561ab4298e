"""Filters of samples by their columns: an expression such as `width >= 256 and aesthetic > 5`.

Of Python, comparisons, arithmetic, `and`, `or`, `not`, `in` and `is None` are allowed.
The expression is evaluated by pyarrow. Nothing is executed.
"""

import ast
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from vqgan.errors import InputError

_MAX_TEXT = 4096
_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: pc.equal, ast.NotEq: pc.not_equal, ast.Lt: pc.less, ast.LtE: pc.less_equal, ast.Gt: pc.greater,
    ast.GtE: pc.greater_equal,
}  # fmt: skip
_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: pc.add_checked, ast.Sub: pc.subtract_checked, ast.Mult: pc.multiply_checked,
    ast.Div: lambda left, right: pc.divide(pc.cast(left, pa.float64()), pc.cast(right, pa.float64())),
}  # fmt: skip
_GRAMMAR = "write comparisons such as width >= 256, joined by and, or, not; also +, -, *, /, in and is None"


@dataclass(frozen=True, slots=True)
class Filter:
    """A condition on columns. Make one with :meth:`parse`."""

    text: str
    """The expression."""
    body: ast.expr
    """Its syntax tree."""

    @classmethod
    def parse(cls, text: str) -> "Filter":
        """Return the filter of an expression.

        Raises:
            InputError: It is none, or uses something else than the module allows.
        """
        try:
            if len(text) > _MAX_TEXT:
                raise ValueError(f"it has more than {_MAX_TEXT} characters")
            found = cls(text, ast.parse(text.strip(), mode="eval").body)
            _check(found.body)
        except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
            raise InputError(f"where is {text!r:.200}: {error}. {_GRAMMAR[0].upper()}{_GRAMMAR[1:]}") from error
        if not found.names:
            raise InputError(f"where is {text!r}: it names no column. {_GRAMMAR[0].upper()}{_GRAMMAR[1:]}")
        return found

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns, each once."""
        return tuple(dict.fromkeys(node.id for node in ast.walk(self.body) if isinstance(node, ast.Name)))

    def mask(self, columns: Mapping[str, Any]) -> Any:
        """Return a boolean array: which rows of these Arrow columns satisfy the filter. Null is false.

        Raises:
            InputError: A column has another type than the expression needs.
        """
        try:
            found = _evaluate(self.body, columns)
            if not pa.types.is_boolean(found.type):
                raise TypeError(f"it is a {found.type}, not true or false")
            return pc.fill_null(found, False)
        except (pa.ArrowException, TypeError, AttributeError, RecursionError) as error:
            types = ", ".join(f"{name} is {columns[name].type}" for name in self.names)
            reason = str(error).splitlines()[0]
            raise InputError(f"where is {self.text!r}: it cannot be evaluated ({reason}); {types}") from error


def _check(node: ast.expr) -> None:
    """Raise ValueError for a node that is not allowed."""
    match node:
        case ast.BoolOp(values=parts):
            pass
        case ast.UnaryOp(op=ast.Not() | ast.USub(), operand=part):
            parts = [part]
        case ast.BinOp(left=left, op=operator, right=right) if type(operator) in _ARITHMETIC:
            parts = [left, right]
        case ast.Compare(left=left, ops=operators, comparators=others):
            parts = [left, *others]
            for comparison, other in zip(operators, others, strict=True):
                _check_comparison(comparison, other)
        case ast.Tuple(elts=parts) | ast.List(elts=parts):
            if not all(isinstance(part, ast.Constant | ast.UnaryOp) for part in parts):
                raise ValueError("a list holds values")
        case ast.Name():
            parts = []
        case ast.Constant(value=str() | bool() | int() | float() | None):
            parts = []
        case _:
            raise ValueError(f"{ast.unparse(node)} is not allowed")
    for part in parts:
        _check(part)


def _check_comparison(operator: ast.cmpop, other: ast.expr) -> None:
    if isinstance(operator, ast.Is | ast.IsNot):
        if not (isinstance(other, ast.Constant) and other.value is None):
            raise ValueError("is and is not are for None")
    elif isinstance(operator, ast.In | ast.NotIn):
        if not isinstance(other, ast.Tuple | ast.List | ast.Name):
            raise ValueError("in is for a list of values, or a text in a column")
    elif type(operator) not in _COMPARE:
        raise ValueError(f"{type(operator).__name__} is not allowed")


def _evaluate(node: ast.expr, columns: Mapping[str, Any]) -> Any:
    """Return the Arrow array or scalar of an expression that `_check` allows."""
    at = functools.partial(_evaluate, columns=columns)
    match node:
        case ast.Name(id=name):
            return columns[name]
        case ast.Constant(value=value):
            return pa.scalar(value)
        case ast.BoolOp(op=operator, values=values):
            join = pc.and_kleene if isinstance(operator, ast.And) else pc.or_kleene
            return functools.reduce(join, map(at, values))
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return pc.invert(at(operand))
        case ast.UnaryOp(operand=operand):
            return pc.negate_checked(at(operand))
        case ast.BinOp(left=left, op=operator, right=right):
            return _ARITHMETIC[type(operator)](at(left), at(right))
        case ast.Compare(left=left, ops=operators, comparators=others):
            found = [
                _compare(one, operator, other, at)
                for one, operator, other in zip([left, *others], operators, others, strict=False)
            ]
            return functools.reduce(pc.and_kleene, found)
    raise TypeError(f"{ast.unparse(node)} is no value")


def _compare(left: ast.expr, operator: ast.cmpop, right: ast.expr, at: Callable[[ast.expr], Any]) -> Any:
    if isinstance(operator, ast.Is | ast.IsNot):
        null = pc.is_null(at(left))
        return null if isinstance(operator, ast.Is) else pc.invert(null)
    if not isinstance(operator, ast.In | ast.NotIn):
        return _COMPARE[type(operator)](at(left), at(right))
    if isinstance(right, ast.Name):  # "cat" in caption
        found = pc.match_substring(at(right), str(at(left).as_py()))
    else:
        values = [at(part).as_py() for part in right.elts]  # type: ignore[attr-defined]
        value = at(left)
        found = pc.if_else(pc.is_null(value), None, pc.is_in(value, value_set=pa.array(values, value.type)))
    return found if isinstance(operator, ast.In) else pc.invert(found)

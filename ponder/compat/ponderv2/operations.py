"""The operations and functions that a config file may use, and words for those that it may not."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from typing import Any

from ponder.compat.ponderv2.limits import limited_range

FUNCTIONS: dict[str, Callable[..., Any]] = {
    "dict": dict,
    "list": list,
    "tuple": tuple,
    "set": set,
    "range": limited_range,
    "len": len,
    "int": int,
    "float": float,
    "str": str,
    "bool": bool,
    "min": min,
    "max": max,
    "round": round,
    "abs": abs,
    "sum": sum,
    "sorted": sorted,
    "zip": lambda *sequences, **options: list(zip(*sequences, **options)),  # noqa: B905 (strict is the config's choice)
    "enumerate": lambda sequence, start=0: list(enumerate(sequence, start)),
}

BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.LShift: operator.lshift,
    ast.RShift: operator.rshift,
    ast.BitAnd: operator.and_,
    ast.BitOr: operator.or_,
    ast.BitXor: operator.xor,
}
# `x += y` changes a list or dict that other names may share, as in Python.
IN_PLACE: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    **BINARY,
    ast.Add: operator.iadd,
    ast.Mult: operator.imul,
    ast.BitOr: operator.ior,
    ast.BitAnd: operator.iand,
    ast.BitXor: operator.ixor,
    ast.Sub: operator.isub,
}
UNARY: dict[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
    ast.Not: operator.not_,
    ast.Invert: operator.invert,
}
COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
    ast.In: lambda item, container: item in container,
    ast.NotIn: lambda item, container: item not in container,
}
# What a mistake in a config makes Python's own operations raise.
MISTAKES = (TypeError, ValueError, ArithmeticError, LookupError)

WORDS = {
    "Import": "an import",
    "FunctionDef": "a function definition",
    "AsyncFunctionDef": "a function definition",
    "ClassDef": "a class definition",
    "Lambda": "a lambda",
    "For": "a for loop",
    "While": "a while loop",
    "If": "an if statement",
    "With": "a with statement",
    "Try": "a try statement",
    "Delete": "del",
    "Assert": "an assertion",
    "Raise": "raise",
    "Attribute": "an attribute (x.y)",
    "NamedExpr": "an assignment inside an expression",
    "GeneratorExp": "a generator outside a call",
    "Starred": "a starred expression here",
}

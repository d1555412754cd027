"""Python config files evaluated without running them: values, arithmetic, comprehensions and a few functions."""

from __future__ import annotations

import ast
from collections import ChainMap
from collections.abc import Callable, Iterator, MutableMapping
from pathlib import Path
from typing import Any, ClassVar, NoReturn

from ponder.compat.ponderv2.constants import MODULES
from ponder.compat.ponderv2.limits import Budget, check_operation, check_spec
from ponder.compat.ponderv2.operations import BINARY, COMPARISONS, FUNCTIONS, IN_PLACE, MISTAKES, UNARY, WORDS
from ponder.registry import suggest
from ponder.train.config import ConfigError

Scope = MutableMapping[str, Any]


class Evaluator:
    """One config file's statements and expressions.

    Attributes:
        names: what was assigned so far.
        read: names that the file itself reads, so that they need no other reader.
    """

    def __init__(self, path: Path, base_value: Callable[[str], Any]) -> None:
        """Remember where the text comes from.

        Args:
            path: the file, named in messages.
            base_value: the value that `{{ _base_.a.b }}` stands for, given "a.b".
        """
        self.path = path
        self.names: dict[str, Any] = {}
        self.read: set[str] = set()
        self._base_value = base_value
        self._budget = Budget()

    def run(self, module: ast.Module) -> None:
        """Carry out the assignments of a file.

        Raises:
            ConfigError: a construct that is not allowed, too much of one, or a mistake; file and line are named.
        """
        for statement in module.body:
            self._guarded(statement, self._statement, statement)

    def evaluate(self, node: ast.expr, scope: Scope | None = None) -> Any:
        """The value of an expression."""
        return self._guarded(node, self._expression, node, self.names if scope is None else scope)

    def _guarded(self, node: ast.AST, action: Callable[..., Any], *args: Any) -> Any:
        """Call `action`; whatever goes wrong inside is reported at the innermost line."""
        try:
            return action(*args)
        except ConfigError:
            raise
        except MISTAKES as error:
            text = f"no key {error}" if isinstance(error, KeyError) else str(error)
            self._fail(node, text)

    def _fail(self, node: ast.AST, message: str) -> NoReturn:
        raise ConfigError(f"{self.path}:{getattr(node, 'lineno', 1)}: {message}") from None

    def _refuse(self, node: ast.AST) -> NoReturn:
        name = type(node).__name__
        self._fail(node, f"{WORDS.get(name, name)} is not allowed in a config, which only assigns values")

    def _statement(self, node: ast.stmt) -> None:
        if isinstance(node, ast.Assign):
            value = self.evaluate(node.value)
            for target in node.targets:
                self._assign(target, value)
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            self._assign(node.target, self.evaluate(node.value))
        elif isinstance(node, ast.AugAssign):
            self._augment(node)
        elif isinstance(node, ast.Expr):
            self.evaluate(node.value)
        elif isinstance(node, ast.ImportFrom):
            self._import(node)
        elif not isinstance(node, ast.Pass):
            self._refuse(node)

    def _import(self, node: ast.ImportFrom) -> None:
        """Take constants of PonderV2's own modules from our table; no module is imported."""
        known = MODULES.get("" if node.level else node.module or "")
        if known is None:
            self._fail(
                node, f"importing from {node.module!r} is not allowed in a config, only from {', '.join(MODULES)}"
            )
        for alias in node.names:
            if alias.name not in known:
                self._fail(node, f"{node.module} has no {alias.name!r} here{suggest(alias.name, list(known))}")
            self.names[alias.asname or alias.name] = known[alias.name]

    def _assign(self, target: ast.expr, value: Any, scope: Scope | None = None) -> None:
        if isinstance(target, ast.Name):
            (self.names if scope is None else scope)[target.id] = value
        elif isinstance(target, ast.Tuple | ast.List):
            self._unpack(target, value, scope)
        elif isinstance(target, ast.Subscript) and scope is None:
            container = self.evaluate(target.value)
            container[self.evaluate(target.slice)] = value
            self._budget.spend(container)
        else:
            self._refuse(target)

    def _unpack(self, target: ast.Tuple | ast.List, value: Any, scope: Scope | None) -> None:
        values, parts = list(value), target.elts
        stars = [i for i, part in enumerate(parts) if isinstance(part, ast.Starred)]
        if stars:
            first, rest = stars[0], len(parts) - stars[0] - 1
            middle = values[first : len(values) - rest]
            if len(values) >= len(parts) - 1:
                values = [*values[:first], middle, *values[len(values) - rest :]]
        if len(values) != len(parts):
            self._fail(target, f"expected {len(parts)} values to unpack, got {len(values)}")
        for part, item in zip(parts, values, strict=True):
            self._assign(part.value if isinstance(part, ast.Starred) else part, item, scope)

    def _augment(self, node: ast.AugAssign) -> None:
        change = IN_PLACE.get(type(node.op))
        if change is None or isinstance(node.target, ast.Attribute):
            self._refuse(node.op if change is None else node.target)
        right = self.evaluate(node.value)
        if isinstance(node.target, ast.Name):
            left = self._name(ast.copy_location(ast.Name(node.target.id), node), self.names)
            check_operation(node.op, left, right)
            self.names[node.target.id] = self._spent(change(left, right))
        else:
            container, key = self.evaluate(node.target.value), self.evaluate(node.target.slice)
            check_operation(node.op, container[key], right)
            container[key] = change(container[key], right)
            self._budget.spend(container)

    def _spent(self, value: Any) -> Any:
        self._budget.spend(value)
        return value

    def _expression(self, node: ast.expr, scope: Scope) -> Any:
        self._budget.step()
        handler = self._HANDLERS.get(type(node))
        if handler is None:
            self._refuse(node)
        return handler(self, node, scope)

    def _constant(self, node: ast.Constant, scope: Scope) -> Any:
        if not (node.value is None or isinstance(node.value, int | float | str)):
            self._fail(node, f"a value of type {type(node.value).__name__} is not allowed in a config")
        return self._spent(node.value)

    def _name(self, node: ast.Name, scope: Scope) -> Any:
        if node.id not in scope:
            if node.id in FUNCTIONS:
                self._fail(node, f"the function {node.id!r} can only be called")
            self._fail(node, f"name {node.id!r} is not defined{suggest(node.id, list(scope)) if scope else ''}")
        self.read.add(node.id)
        return scope[node.id]

    def _items(self, nodes: list[ast.expr], scope: Scope) -> list[Any]:
        """Elements of a display or positional arguments, `*x` unpacked."""
        items: list[Any] = []
        for node in nodes:
            if isinstance(node, ast.Starred):
                items += self.evaluate(node.value, scope)
                self._budget.spend(items)
            else:
                items.append(self.evaluate(node, scope))
        return items

    def _list(self, node: ast.List, scope: Scope) -> Any:
        return self._spent(self._items(node.elts, scope))

    def _tuple(self, node: ast.Tuple, scope: Scope) -> Any:
        return self._spent(tuple(self._items(node.elts, scope)))

    def _set(self, node: ast.Set, scope: Scope) -> Any:
        dotted = base_reference(node)
        if dotted is not None:
            return self._spent(self._base_value(dotted))
        return self._spent(set(self._items(node.elts, scope)))

    def _dict(self, node: ast.Dict, scope: Scope) -> Any:
        result: dict[Any, Any] = {}
        for key, value in zip(node.keys, node.values, strict=True):
            item = self.evaluate(value, scope)
            if key is None:
                result.update(self._mapping(value, item))
            else:
                result[self.evaluate(key, scope)] = item
        return self._spent(result)

    def _mapping(self, node: ast.expr, value: Any) -> dict[Any, Any]:
        if not isinstance(value, dict):
            self._fail(node, f"** needs a dict, got {type(value).__name__}")
        return value

    def _binary(self, node: ast.BinOp, scope: Scope) -> Any:
        left, right = self.evaluate(node.left, scope), self.evaluate(node.right, scope)
        apply = BINARY.get(type(node.op))
        if apply is None:
            self._refuse(node.op)
        check_operation(node.op, left, right)
        return self._spent(apply(left, right))

    def _unary(self, node: ast.UnaryOp, scope: Scope) -> Any:
        return UNARY[type(node.op)](self.evaluate(node.operand, scope))

    def _boolean(self, node: ast.BoolOp, scope: Scope) -> Any:
        value = None
        for part in node.values:
            value = self.evaluate(part, scope)
            if bool(value) != isinstance(node.op, ast.And):
                break
        return value

    def _compare(self, node: ast.Compare, scope: Scope) -> Any:
        left, result = self.evaluate(node.left, scope), True
        for op, part in zip(node.ops, node.comparators, strict=True):
            right = self.evaluate(part, scope)
            self._budget.spend(left, right)
            result = COMPARISONS[type(op)](left, right)
            if not result:
                break
            left = right
        return result

    def _conditional(self, node: ast.IfExp, scope: Scope) -> Any:
        return self.evaluate(node.body if self.evaluate(node.test, scope) else node.orelse, scope)

    def _subscript(self, node: ast.Subscript, scope: Scope) -> Any:
        return self.evaluate(node.value, scope)[self.evaluate(node.slice, scope)]

    def _slice(self, node: ast.Slice, scope: Scope) -> Any:
        return slice(*(part and self.evaluate(part, scope) for part in (node.lower, node.upper, node.step)))

    def _joined(self, node: ast.JoinedStr, scope: Scope) -> Any:
        return self._spent("".join(self.evaluate(part, scope) for part in node.values))

    def _formatted(self, node: ast.FormattedValue, scope: Scope) -> Any:
        value = self.evaluate(node.value, scope)
        self._budget.spend(value)
        spec = self.evaluate(node.format_spec, scope) if node.format_spec else ""
        check_spec(spec)
        conversions: dict[int, Callable[[Any], str]] = {ord("r"): repr, ord("s"): str, ord("a"): ascii}
        convert = conversions.get(node.conversion)
        return format(value if convert is None else convert(value), spec)

    def _call(self, node: ast.Call, scope: Scope) -> Any:
        if not isinstance(node.func, ast.Name):
            self._refuse(node.func)
        name = node.func.id
        if name in scope:
            self._fail(node, f"{name!r} is a value here and cannot be called")
        if name not in FUNCTIONS:
            self._fail(node, f"calling {name!r} is not allowed in a config{suggest(name, list(FUNCTIONS))}")
        arguments: list[Any] = []
        for part in node.args:
            generated = isinstance(part, ast.GeneratorExp)
            arguments += [self._collected(part, scope)] if generated else self._items([part], scope)
        options: dict[str, Any] = {}
        for keyword in node.keywords:
            value = self.evaluate(keyword.value, scope)
            given = self._mapping(keyword.value, value) if keyword.arg is None else {keyword.arg: value}
            twice = sorted(given.keys() & options.keys())
            if twice:
                self._fail(node, f"argument {twice[0]!r} is given twice")
            options |= given
        self._budget.spend(*arguments, *options.values())
        return self._spent(FUNCTIONS[name](*arguments, **options))

    def _collected(self, node: Any, scope: Scope) -> list[Any]:
        """Elements of a list or set comprehension or of a generator."""
        return self._spent([self.evaluate(node.elt, inner) for inner in self._rounds(node.generators, scope)])

    def _set_comprehension(self, node: ast.SetComp, scope: Scope) -> Any:
        return set(self._collected(node, scope))

    def _dict_comprehension(self, node: ast.DictComp, scope: Scope) -> Any:
        rounds = self._rounds(node.generators, scope)
        return self._spent({self.evaluate(node.key, inner): self.evaluate(node.value, inner) for inner in rounds})

    def _rounds(self, generators: list[ast.comprehension], scope: Scope) -> Iterator[Scope]:
        """The scopes in which a comprehension's element is evaluated, one after the other."""
        if not generators:
            yield scope
            return
        first, *rest = generators
        for item in self.evaluate(first.iter, scope):
            inner: Scope = ChainMap({}, scope)
            self._assign(first.target, item, inner)
            if all(self.evaluate(condition, inner) for condition in first.ifs):
                yield from self._rounds(rest, inner)

    _HANDLERS: ClassVar[dict[type[ast.expr], Callable[..., Any]]] = {
        ast.Constant: _constant,
        ast.Name: _name,
        ast.List: _list,
        ast.Tuple: _tuple,
        ast.Set: _set,
        ast.Dict: _dict,
        ast.BinOp: _binary,
        ast.UnaryOp: _unary,
        ast.BoolOp: _boolean,
        ast.Compare: _compare,
        ast.IfExp: _conditional,
        ast.Subscript: _subscript,
        ast.Slice: _slice,
        ast.JoinedStr: _joined,
        ast.FormattedValue: _formatted,
        ast.Call: _call,
        ast.ListComp: _collected,
        ast.SetComp: _set_comprehension,
        ast.DictComp: _dict_comprehension,
    }


def base_reference(node: ast.expr) -> str | None:
    """The "a.b" of `{{ _base_.a.b }}`, which Python reads as a set that holds a set; None for anything else."""
    for _ in range(2):
        if not (isinstance(node, ast.Set) and len(node.elts) == 1):
            return None
        node = node.elts[0]
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join(reversed(parts)) if parts and isinstance(node, ast.Name) and node.id == "_base_" else None

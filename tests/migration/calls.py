"""Whether calls that a table shows could be made: their names are there, and take such arguments.

Nothing is called. It runs in the environment of the library that it looks at, so it imports nothing
of this project: `python calls.py` reads JSON and writes what is wrong, a line each.
"""

from __future__ import annotations

import ast
import builtins
import inspect
import json
import re
import sys
import types
import typing
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable


class MissingError(Exception):
    """Something that a call names is not there."""


class Some:
    """An instance of a class; None: of one that is not known."""

    def __init__(self, kind: Any = None) -> None:
        kinds = [each for each in typing.get_args(kind) if each is not type(None)]
        if len(kinds) == 1 and typing.get_origin(kind) in (typing.Union, types.UnionType):
            [kind] = kinds
        self.kind = kind if inspect.isclass(kind) and kind is not Any else None


def found(path: str) -> Any:
    """The object by its dotted path."""
    head, *rest = path.split(".")
    value = import_module(head)
    for name in rest:
        if not hasattr(value, name):
            import_module(f"{value.__name__}.{name}")
        value = getattr(value, name)
    return value


def hints(thing: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(thing)
    except Exception:  # an annotation that means something to type checkers only
        return {}


def attribute(value: Any, name: str) -> Any:
    """What is behind the dot."""
    if not isinstance(value, Some):
        if not hasattr(value, name):
            raise MissingError(f"no {name!r} in {value!r}")
        return getattr(value, name)
    kind = value.kind
    if kind is None:
        return Some()
    if hasattr(kind, name):
        got = inspect.getattr_static(kind, name)
        if isinstance(got, property):
            return Some(hints(got.fget).get("return"))
        if inspect.isfunction(got):
            return got.__get__(object())  # bound, so that its signature is that of the call
        return Some(hints(kind).get(name))
    if name in hints(kind):
        return Some(hints(kind)[name])
    if any(f"self.{name}" in source(base) for base in kind.__mro__):
        return Some()
    raise MissingError(f"no {name!r} in {kind.__name__}")


def source(kind: type) -> str:
    try:
        return inspect.getsource(kind)
    except (OSError, TypeError):
        return ""


def called(value: Any, node: ast.Call) -> Some:
    """What a call gives, if it could be made."""
    if isinstance(value, Some):
        return Some()
    try:
        signature = inspect.signature(value)
    except ValueError:
        return Some(value)
    named = [each.arg for each in node.keywords if each.arg]
    places = [each for each in node.args if not isinstance(each, ast.Starred)]
    try:
        signature.bind_partial(*places, **dict.fromkeys(named))
    except TypeError as error:
        raise MissingError(f"{ast.unparse(node)}: {error}") from error
    return Some(value if inspect.isclass(value) else hints(value).get("return"))


class Look(ast.NodeVisitor):
    """Looks at all calls and attributes of a text."""

    def __init__(self, names: dict[str, Any]) -> None:
        self.names = names

    def visit(self, node: ast.AST) -> Any:
        return super().visit(node) or Some()

    def visit_Name(self, node: ast.Name) -> Any:
        if node.id in self.names:
            return self.names[node.id]
        if hasattr(builtins, node.id):
            return getattr(builtins, node.id)
        raise MissingError(f"nobody says what {node.id!r} is")

    def visit_Attribute(self, node: ast.Attribute) -> Any:
        return attribute(self.visit(node.value), node.attr)

    def visit_Call(self, node: ast.Call) -> Any:
        for each in [*node.args, *(keyword.value for keyword in node.keywords)]:
            if not isinstance(each, ast.Name):  # those stand for whatever the caller has
                self.visit(each)
        return called(self.visit(node.func), node)

    def visit_Await(self, node: ast.Await) -> Any:
        return self.visit(node.value)

    def visit_Lambda(self, node: ast.Lambda) -> Any:
        return Some()  # its parameters are anybody's

    def visit_Assign(self, node: ast.Assign) -> None:
        self.visit(node.value)
        for target in node.targets:
            if isinstance(target, ast.Attribute):
                self.visit(target)

    def visit_Import(self, node: ast.Import) -> None:
        for each in node.names:
            found(each.name)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        for each in node.names:
            attribute(found(node.module or ""), each.name)


def parsed(text: str) -> list[ast.stmt]:
    """The tree of a piece of code as tables show it."""
    text = text.removeprefix("@")
    if re.match(r"(async )?(with|for) ", text):
        text = f"{text.removesuffix(':')}: pass"
    wrapped = f"async def f():\n {text}"
    [function] = ast.parse(wrapped).body
    assert isinstance(function, ast.AsyncFunctionDef)
    return function.body


def problems(imports: Iterable[str], variables: dict[str, str], texts: Iterable[str]) -> list[str]:
    """What is wrong with these texts."""
    names: dict[str, Any] = {}
    exec("\n".join(imports), names)
    names.update({name: Some(found(path)) for name, path in variables.items()})
    wrong = []
    for text in texts:
        try:
            for statement in parsed(text):
                Look(names).visit(statement)
        except (MissingError, ImportError, SyntaxError) as error:
            wrong.append(f"{text}: {error}")
    return wrong


if __name__ == "__main__":
    print("\n".join(problems(**json.load(sys.stdin))))

"""What `key=` and `cost=` say for a decorated function, read from the arguments of each call.

    @Throttled(key="user:{user_id}", cost=lambda user_id, prompt: len(prompt) // 4)
    def complete(user_id, prompt): ...

Rules
-----
* A key is a text, a template, or a callable that is given the arguments of the call; a cost is an
  integer or such a callable.
* A template is written as for `str.format`. Its fields begin with the name of a parameter of the
  function, as `inspect.signature` shows them. What is wrong with the text of a template is said
  when the function is decorated; a call can fail only by the values that it passes.
* A call that does not fit the function gets the function's own `TypeError`, before any callable is
  asked and before anything is taken.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import partial
from inspect import Parameter, Signature
from string import Formatter
from typing import Any, Literal, cast

from throttled._callables import checked_callable, name_of
from throttled._text import shown
from throttled.arguments import Key, check_cost, check_key
from throttled.exceptions import DataError

if sys.version_info >= (3, 14):
    from annotationlib import Format

    # Annotations are not looked at, and may name what only type checkers import.
    _signature = partial(inspect.signature, annotation_format=Format.STRING)
else:
    _signature = inspect.signature

#: `(args, kwargs)` of a call -> its `(key, cost)`, or an awaitable of them.
Reader = Callable[[tuple[Any, ...], dict[str, Any]], Any]
#: A call -> the values of its arguments, by the names of the parameters.
_Binder = Callable[..., Mapping[str, Any]]


def reader(key: Any, cost: Any, func: Callable[..., Any], asynchronous: bool) -> Reader:
    """What reads the key and the cost of a call of `func` from the call's arguments.

    It gives a tuple, or an awaitable of one if it is `asynchronous` and has a callable to ask.
    Raises `DataError` for a template that `func` cannot fill, and for an async callable where
    nothing is awaited.
    """
    text = Template("" if callable(key) else key, func)
    ask_key = Asked("key", key, asynchronous) if callable(key) else None
    ask_cost = Asked("cost", cost, asynchronous) if callable(cost) else None
    if not (text.names or ask_key or ask_cost):
        same = text.literal, cost
        return lambda args, kwargs: same

    # The text comes first, also where it is not the key: it raises the function's TypeError.
    def read(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        said = text.of(args, kwargs)
        if ask_key is not None:
            said = ask_key(*args, **kwargs)
        return said, cost if ask_cost is None else ask_cost(*args, **kwargs)

    async def aread(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        said = text.of(args, kwargs)
        if ask_key is not None:
            said = await ask_key.awaited(*args, **kwargs)
        return said, cost if ask_cost is None else await ask_cost.awaited(*args, **kwargs)

    return aread if asynchronous and (ask_key or ask_cost) else read


class Template:
    """A text whose fields the calls of a function fill: `"user:{user_id}"`, `"{self.id:>20}"`."""

    __slots__ = ("_bind", "_call", "_text", "literal", "names")

    def __init__(self, text: str, func: Callable[..., Any]) -> None:
        """Raises `DataError` for a text that no call of `func` could fill."""
        try:
            signature = _signature(func)
        except (TypeError, ValueError):  # as of some callables that are written in C
            signature = None
        parameters = {} if signature is None else signature.parameters
        takes_any = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
        self._text = text
        #: The function as messages show it.
        self._call = f"{name_of(func)}({', '.join(parameters)})"
        fields = _Fields()
        try:
            literal = fields.vformat(text, (), {})
        except ValueError as error:
            raise DataError(
                f"Invalid key: {shown(text)}, is no template for {self._call}: {error}; "
                f"a brace that stands for itself is doubled."
            ) from None
        for name in fields.names:
            if name not in parameters and not (takes_any and isinstance(name, str) and name):
                raise DataError(
                    f"Invalid key: {shown(text)}, the field {{{name}}} names no parameter of "
                    f"{self._call}."
                )
        #: The names that its fields begin with.
        self.names = frozenset(map(str, fields.names))
        #: Without fields: the text with its doubled braces undone.
        self.literal = text if text == literal else self._made(literal)
        self._bind = _binder(func, signature, self.names)

    def of(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        """The text for a call, or the `TypeError` of one that does not fit the function."""
        values = self._bind(*args, **kwargs)
        if not self.names:
            return self.literal
        try:
            filled = self._text.format_map(values)  # a plain str, of whatever kind the text is
        except Exception as error:
            raise DataError(
                f"Invalid key: {shown(self._text)}, {self._unread(values)} cannot be read in a "
                f"call of {self._call}: {shown(error)}."
            ) from error
        if not filled:
            raise DataError(
                f"Invalid key: {shown(self._text)}, comes to an empty string in a call of "
                f"{self._call}."
            )
        return filled if type(self._text) is str else self._made(filled)

    def _made(self, filled: str) -> str:
        """A key of the kind that the template is: a `Key` reads "slot\\0text"."""
        if not isinstance(self._text, Key):
            return filled
        slot, _, text = filled.partition("\0")
        return Key(text, slot)

    def _unread(self, values: Mapping[str, Any]) -> str:
        """The first field that cannot be read, for a message."""
        for _, field, form, conversion in Formatter().parse(self._text):
            if field is None:
                continue
            whole = field + (f"!{conversion}" if conversion else "") + (f":{form}" if form else "")
            try:
                f"{{{whole}}}".format_map(values)
            except Exception:
                return f"the field {{{whole}}}"
        return "a field"


class _Fields(Formatter):
    """Fills a template with stand-ins and notes what its fields ask for: names, or numbers."""

    def __init__(self) -> None:
        self.names: list[int | str] = []

    def get_value(self, key: int | str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        self.names.append(key)
        return _StandIn()


class _StandIn:
    """Has every attribute and item, and is formatted in any way."""

    def __getattribute__(self, name: str) -> _StandIn:
        return self

    def __getitem__(self, key: object) -> _StandIn:
        return self

    def __format__(self, form: str) -> str:
        return "1"  # which is a width and a precision, should it be part of a format itself


class Asked:
    """A callable of the user's that says a key or a cost."""

    __slots__ = ("_call", "_check")

    def __init__(
        self, what: Literal["key", "cost"], call: Callable[..., Any], asynchronous: bool
    ) -> None:
        """Raises `DataError` for an async one where nothing is awaited."""
        self._call = checked_callable(what, call, asynchronous)
        self._check: Callable[[object], Any] = check_key if what == "key" else check_cost

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What it says, asked with these arguments; `DataError` if it is no key or cost."""
        return self._checked(self._call(*args, **kwargs))

    async def awaited(self, *args: Any, **kwargs: Any) -> Any:
        """The same where it may say it later."""
        value = self._call(*args, **kwargs)
        return self._checked(await value if inspect.isawaitable(value) else value)

    def _checked(self, value: Any) -> Any:
        try:
            return self._check(value)
        except DataError as error:
            if inspect.iscoroutine(value):
                value.close()  # else Python warns, later and elsewhere, that nobody awaited it
            raise DataError(f"{error} {name_of(self._call)} returned it.") from None


def _binder(
    func: Callable[..., Any], signature: Signature | None, names: AbstractSet[str]
) -> _Binder:
    """What gives the values of the named arguments of a call of `func`, defaults included.

    It is a function that takes what `func` takes, made from the names of the parameters alone, so
    that Python itself binds each call: by its own rules, with its own `TypeError`, and many times
    faster than `Signature.bind`.
    """
    wrapped = hasattr(func, "__wrapped__")
    if signature is None or (wrapped and not names):
        return lambda *args, **kwargs: {}
    parameters = signature.parameters.values()
    bare = [
        each.replace(
            annotation=Parameter.empty,
            default=Parameter.empty if each.default is Parameter.empty else None,
        )
        for each in parameters
    ]
    items = [f"{name!r}: {name}" for name in names if name in signature.parameters]
    if len(items) < len(names):
        items[:0] = [f"**{each.name}" for each in parameters if each.kind is each.VAR_KEYWORD]
    bind: Any = eval(f"lambda {str(Signature(bare))[1:-1]}: {{{', '.join(items)}}}", {})
    defaults = [each for each in parameters if each.default is not Parameter.empty]
    bind.__defaults__ = tuple(
        each.default for each in defaults if each.kind is not each.KEYWORD_ONLY
    )
    bind.__kwdefaults__ = {
        each.name: each.default for each in defaults if each.kind is each.KEYWORD_ONLY
    }
    bind.__qualname__ = name_of(func)  # which its TypeErrors begin with

    def bind_wrapped(*args: Any, **kwargs: Any) -> Mapping[str, Any]:
        # What is between here and the function whose signature this is may add arguments.
        try:
            return cast("Mapping[str, Any]", bind(*args, **kwargs))
        except TypeError:
            bound = signature.bind_partial(*args, **kwargs)
            bound.apply_defaults()
            if names <= bound.arguments.keys():
                return bound.arguments
            raise

    return bind_wrapped if wrapped else cast("_Binder", bind)

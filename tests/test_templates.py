"""Keys with fields, filled from the call of a decorated function."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from throttled import MemoryStore, Throttled
from throttled.arguments import Key
from throttled.asyncio import Throttled as AsyncThrottled
from throttled.exceptions import DataError, LimitedError
from throttled.templates import reader
from throttled.testing import FakeClock

FLAVOURS = [pytest.param(Throttled, id="sync"), pytest.param(AsyncThrottled, id="async")]


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore(clock=FakeClock())


def asked(key: Any, cost: Any, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """The key and the cost of one call."""
    return reader(key, cost, func, asynchronous=False)(args, kwargs)


def key_of(template: str, func: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
    key: str = asked(template, 1, func, *args, **kwargs)[0]
    return key


def test_each_user_has_a_limit_of_its_own(store: MemoryStore) -> None:
    @Throttled(key="user:{user_id}", quota="1/m", store=store)
    def fetch(user_id: int, path: str = "/") -> str:
        return f"{user_id}{path}"

    assert fetch(1) == "1/"
    assert fetch(user_id=2, path="/a") == "2/a"
    with pytest.raises(LimitedError):
        fetch(1, "/b")
    with pytest.raises(LimitedError):
        fetch(2)
    assert fetch(3) == "3/"


def test_the_parameters_of_every_kind() -> None:
    def func(
        a: Any, /, b: Any, c: Any = "C", *args: Any, d: Any, e: Any = "E", **rest: Any
    ) -> None:
        raise AssertionError("reading a call does not run it")

    template = "{a}-{b}-{c}-{args}-{d}-{e}-{rest}"
    assert key_of(template, func, 1, 2, d=4) == "1-2-C-()-4-E-{}"
    assert key_of(template, func, 1, b=2, c=3, d=4, e=5) == "1-2-3-()-4-5-{}"
    assert key_of(template, func, 1, 2, 3, 4, d=5, f=6) == "1-2-3-(4,)-5-E-{'f': 6}"
    assert key_of("{args[1]}:{rest[f]}", func, 1, 2, 3, 4, 5, d=6, f=7) == "5:7"
    # A name that is positional only is free for others, and the parameter is meant.
    assert key_of("{a}:{rest[a]}", func, 1, 2, d=3, a="other") == "1:other"


def test_names_that_only_the_call_knows() -> None:
    def func(a: int, **rest: Any) -> None: ...

    assert key_of("{a}:{tenant}", func, 1, tenant="acme") == "1:acme"
    with pytest.raises(DataError, match=r"'\{a\}:\{tenant\}', the field \{tenant\} .*func\(a, r"):
        key_of("{a}:{tenant}", func, 1)


def test_attributes_items_conversions_and_formats() -> None:
    def func(request: Any, n: float = 0.5, width: int = 6) -> None: ...

    request = SimpleNamespace(headers={"x-key": "k 1"}, user=SimpleNamespace(name="ann"))
    assert key_of("{request.headers[x-key]}", func, request) == "k 1"
    assert key_of("{request.user.name!r}", func, request) == "'ann'"
    assert (
        key_of("{request.user.name!s:>5}|{n:.2f}|{n:{width}}", func, request) == "  ann|0.50|   0.5"
    )
    assert key_of("{request.__class__.__name__}", func, request) == "SimpleNamespace"
    assert key_of("{n.__class__.is_integer.__name__}", func, request) == "is_integer"
    assert key_of("{{{n}}}", func, request) == "{0.5}"


def test_a_text_without_fields_is_the_key() -> None:
    def func(a: int) -> None: ...

    assert key_of("plain", func) == "plain"
    assert key_of("{{a}}", func) == "{a}"


def test_a_key_with_a_slot_stays_one() -> None:
    def func(user: str, org: str) -> None: ...

    plain = Key("plain", slot="acme")
    assert asked(plain, 1, func)[0] is plain
    assert asked(plain, lambda *args: 1, func, 1, 2)[0] is plain
    assert asked(lambda *args: plain, 1, func, 1, 2)[0] is plain
    for template, right in [
        (Key("user:{user}", slot="{org}"), Key("user:ann", slot="acme")),
        (Key("{{user}}", slot="{{org}}"), Key("{user}", slot="{org}")),
    ]:
        key = asked(template, 1, func, "ann", "acme")[0]
        assert type(key) is Key
        assert (key.text, key.slot) == (right.text, right.slot)
    with pytest.raises(DataError, match=r"Key\('u', slot='\{nobody\}'\), the field \{nobody\}"):
        asked(Key("u", slot="{nobody}"), 1, func)
    with pytest.raises(DataError, match="Invalid slot: ''"):
        asked(Key("{user}", slot="{org}"), 1, func, "ann", "")


def test_methods(store: MemoryStore) -> None:
    limit = Throttled(key="{self.name}:{path}", quota="1/m", store=store)
    of_class = Throttled(key="{cls.__name__}:{path}", quota="1/m", store=store)
    of_none = Throttled(key="alone:{path}", quota="1/m", store=store)

    class Client:
        def __init__(self, name: str) -> None:
            self.name = name

        @limit
        def get(self, path: str) -> str:
            return f"{self.name} {path}"

        @of_class
        @classmethod
        def outer(cls, path: str) -> str:
            return cls.__name__ + path

        @classmethod
        @of_class
        def inner(cls, path: str) -> str:
            return cls.__name__ + path

        @staticmethod
        @of_none
        def alone(path: str) -> str:
            return path

        @of_none
        @staticmethod
        def outside(path: str) -> str:
            return path

    class Other(Client): ...

    one, two = Client("one"), Client("two")
    assert [one.get("/a"), two.get("/a"), one.get(path="/b")] == ["one /a", "two /a", "one /b"]
    with pytest.raises(LimitedError):
        one.get("/a")
    assert [Client.outer("/"), Other.outer("/"), Client.inner("/i")] == [
        "Client/",
        "Other/",
        "Client/i",
    ]
    with pytest.raises(LimitedError):
        Client.inner("/")
    assert [Client.alone("x"), one.outside("y")] == ["x", "y"]
    with pytest.raises(LimitedError):
        Client.outside("x")


def test_other_callables_have_parameters_too() -> None:
    class Adder:
        def __call__(self, n: int, by: int = 1) -> int:
            return n + by

    class Point:
        def __init__(self, x: int, y: int = 7) -> None: ...

    def func(a: int, b: int, *, c: int = 3) -> None: ...

    assert key_of("{n}+{by}", Adder(), 5) == "5+1"
    assert key_of("{n}+{by}", Adder().__call__, by=2, n=1) == "1+2"
    assert key_of("{x},{y}", Point, 1) == "1,7"
    assert key_of("{b}{c}", functools.partial(func, 1, c=4), 2) == "24"
    assert key_of("{b}{c}", functools.partial(func, 1, c=4), 2, c=5) == "25"
    assert key_of("{obj}", len, "four") == "four"


def test_an_argument_is_read_once_and_kept() -> None:
    """A default is the function's own object, not a copy; a mutable one may have changed."""
    default: list[int] = []

    def func(a: list[int] = default, *, b: list[int] = default) -> None: ...

    read = reader("{a}{b}", 1, func, asynchronous=False)
    assert read((), {})[0] == "[][]"
    default.append(1)
    assert read((), {})[0] == "[1][1]"


def test_under_other_decorators_the_signature_that_is_shown_counts() -> None:
    def logging(func: Any) -> Any:
        @functools.wraps(func)
        def inner(*args: Any, **kwargs: Any) -> Any:
            return func(*args, **kwargs)

        return inner

    def with_session(func: Any) -> Any:
        @functools.wraps(func)
        def inner(*args: Any, **kwargs: Any) -> Any:
            return func(*args, session="session", **kwargs)

        return inner

    def with_option(func: Any) -> Any:
        @functools.wraps(func)
        def inner(*args: Any, retries: int = 0, **kwargs: Any) -> Any:
            return func(*args, **kwargs)

        return inner

    def func(user_id: int, page: int = 1, *, session: str = "") -> None: ...

    def needy(user_id: int, page: int = 1, *, session: str) -> None: ...

    assert key_of("{user_id}:{page}", logging(func), 5) == "5:1"
    assert key_of("{user_id}:{page}", with_session(needy), 5) == "5:1"
    assert key_of("{user_id}:{page}", with_session(needy), page=2, user_id=5) == "5:2"
    assert asked(lambda user_id, page=1: f"{user_id}.{page}", 1, with_session(needy), 5)[0] == "5.1"
    # What the signature does not show, a callable may know of.
    assert asked(lambda n, retries: f"{n}", 1, with_option(func), 5, retries=2)[0] == "5"
    for broken in (logging(func), with_session(needy)):
        with pytest.raises(TypeError, match=r"missing 1 required positional argument: 'user_id'"):
            key_of("{user_id}:{page}", broken)


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("user:{user_id", r"expected '}' before end of string"),
        ("user:user_id}", r"Single '}' encountered"),
        ("user:{", r"Single '{' encountered"),
        ("{user_id!x}", r"Unknown conversion specifier"),
        ("{user_id.}", r"Empty attribute"),
        ("{user_id[a}", r"expected '}' before end of string"),
        ("{user_id[a]b}", r"Only '\.' or '\[' may follow"),
        ("{user_id:{path:{user_id}}}", r"recursion"),
        ("{user_id!r:d}", r"Unknown format code 'd'"),
        ("{usr_id}", r"the field \{usr_id\} names no parameter"),
        ("{ user_id }", r"the field \{ user_id \} names no parameter"),
        ("{user_id:{width}}", r"the field \{width\} names no parameter"),
        ("user:{}", r"the field \{0\} names no parameter"),
        ("user:{0}", r"the field \{0\} names no parameter"),
        ("user:{!r:>5}", r"the field \{0\} names no parameter"),
        ("user:{.name}", r"the field \{0?\} names no parameter"),
        ("user:{user_id:{}}", r"the field \{\d\} names no parameter"),
    ],
)
def test_a_bad_template_fails_at_decoration(flavour: Any, template: str, says: str) -> None:
    def fetch(user_id: int, path: str) -> None: ...

    async def afetch(user_id: int, path: str) -> None: ...

    throttle = flavour(key=template)
    with pytest.raises(DataError, match=says) as error:
        throttle(fetch if flavour is Throttled else afetch)
    assert repr(template) in str(error.value)
    assert "fetch(user_id, path)" in str(error.value)


@pytest.mark.parametrize("template", ["{}", "{0}", "{rest.}", "{.x}", "{user_id"])
def test_keyword_arguments_of_any_name_do_not_excuse_a_bad_template(template: str) -> None:
    def func(**rest: Any) -> None: ...

    with pytest.raises(DataError, match=r"func\(rest\)"):
        reader(template, 1, func, asynchronous=False)


def test_a_function_without_a_signature_takes_no_template() -> None:
    func = type("Opaque", (), {"__call__": len, "__signature__": "none"})()
    with pytest.raises((TypeError, ValueError)):
        inspect.signature(func)
    with pytest.raises(DataError, match=r"the field \{obj\} names no parameter"):
        reader("{obj}", 1, func, asynchronous=False)
    assert asked(lambda *args: str(args), lambda *args: 2, func, 1) == ("(1,)", 2)
    assert asked("plain", 3, func, 1) == ("plain", 3)


@pytest.mark.parametrize(
    ("template", "field", "cause"),
    [
        ("a:{n}:{request.headers[x]}", r"\{request\.headers\[x\]\}", KeyError),
        ("{request.user.name!r:>5}", r"\{request\.user\.name!r:>5\}", AttributeError),
        ("{args[0]}", r"\{args\[0\]\}", IndexError),
        ("{n:%d}", r"\{n:%d\}", ValueError),
        ("{n:{request}}", r"\{n:\{request\}\}", ValueError),
        ("{request:>5}", r"\{request:>5\}", TypeError),
        ("{request.broken}", r"\{request\.broken\}", ZeroDivisionError),
    ],
)
def test_what_cannot_be_read_from_a_call_names_the_field(
    store: MemoryStore, template: str, field: str, cause: type[Exception]
) -> None:
    class Request:
        headers: dict[str, str] = {}  # noqa: RUF012

        @property
        def broken(self) -> int:
            return 1 // 0

    ran = []

    @Throttled(key=template, store=store)
    def fetch(request: Request, n: float = 0.5, *args: int) -> None:
        ran.append(1)

    with pytest.raises(
        DataError, match=rf"the field {field} cannot be read in a call of .*fetch\("
    ) as error:
        fetch(Request())
    assert repr(template) in str(error.value)
    assert isinstance(error.value.__cause__, cause)
    assert not ran
    assert len(store) == 0


def test_a_template_that_comes_to_nothing(store: MemoryStore) -> None:
    @Throttled(key="{a}{b}", store=store)
    def func(a: str, b: str = "") -> None: ...

    func("x")
    with pytest.raises(
        DataError, match=r"'\{a\}\{b\}', comes to an empty string in .*func\(a, b\)"
    ):
        func("")


@pytest.mark.parametrize(
    ("key", "cost"),
    [
        ("{a}", 1),
        ("{b}", 1),
        ("{a}", lambda *args, **kwargs: 1),
        (lambda *args, **kwargs: "k", 1),
        ("plain", lambda *args, **kwargs: 1),
    ],
)
async def test_a_call_that_does_not_fit_gets_the_functions_own_error(
    store: MemoryStore, key: Any, cost: Any
) -> None:
    def func(a: int, b: int = 2, *, c: int) -> None: ...

    async def afunc(a: int, b: int = 2, *, c: int) -> None: ...

    def generate(a: int, b: int = 2, *, c: int) -> Any:
        yield 1

    async def agenerate(a: int, b: int = 2, *, c: int) -> Any:
        yield 1

    options: Any = {"key": key, "cost": cost, "store": store}
    limited, alimited = Throttled(**options), AsyncThrottled(**options)
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
        ((), {}), ((1,), {}), ((), {"c": 3}), ((1, 2, 3), {"c": 3}), ((1,), {"a": 1, "c": 3}),
        ((1,), {"c": 3, "d": 4}),
    ]  # fmt: skip
    for args, kwargs in calls:
        with pytest.raises(TypeError) as own:
            func(*args, **kwargs)
        with pytest.raises(TypeError) as error:
            limited(func)(*args, **kwargs)
        assert str(error.value) == str(own.value)
        with pytest.raises(TypeError) as error:
            await alimited(afunc)(*args, **kwargs)
        assert str(error.value) == str(own.value).replace(".func", ".afunc")
        with pytest.raises(TypeError) as error:
            next(limited(generate)(*args, **kwargs))
        assert str(error.value) == str(own.value).replace(".func", ".generate")
        with pytest.raises(TypeError) as error:
            await anext(alimited(agenerate)(*args, **kwargs))
        assert str(error.value) == str(own.value).replace(".func", ".agenerate")
    assert len(store) == 0


# -- as Python does it ----------------------------------------------------------------------------


@st.composite
def functions(draw: st.DrawFn) -> Callable[..., Any]:
    """Functions with parameters of all kinds, which return what they were given."""
    names = iter("abcdefghij")
    few = st.integers(0, 2)
    parts: list[str] = []
    optional = False

    def parameters(count: int, ordered: bool) -> None:
        nonlocal optional
        for _ in range(count):
            name = next(names)
            given = draw(st.booleans())
            optional = given or (ordered and optional)
            parts.append(f"{name}='{name.upper()}'" if (given or (ordered and optional)) else name)

    parameters(positional := draw(few), True)
    if positional:
        parts.append("/")
    parameters(draw(few), True)
    keyword = draw(few)
    if draw(st.booleans()):
        parts.append("*args")
    elif keyword:
        parts.append("*")
    parameters(keyword, False)
    if draw(st.booleans()):
        parts.append("**rest")
    scope: dict[str, Any] = {}
    exec(f"def func({', '.join(parts)}): return locals()", scope)
    func: Callable[..., Any] = scope["func"]
    return func


def error_of(call: Callable[[], object]) -> Exception | None:
    """What a call raises, or None."""
    try:
        call()
    except Exception as error:
        return error
    return None


CALLS = st.tuples(
    st.lists(st.integers(0, 9), max_size=5).map(tuple),
    st.dictionaries(st.sampled_from("abcdefgz"), st.integers(0, 9), max_size=4),
)


@given(functions(), st.lists(CALLS, max_size=6), st.data())
def test_any_call_is_read_as_python_binds_it(func: Any, calls: list[Any], data: Any) -> None:
    parameters = sorted(inspect.signature(func).parameters)
    names = data.draw(st.lists(st.sampled_from(parameters), max_size=3)) if parameters else []
    template = "key" + "".join(f":{{{name}}}" for name in names)
    # A cost that is asked makes sure that the call is bound even if the key has no field.
    read = reader(template, lambda *args, **kwargs: 1, func, asynchronous=False)
    for args, kwargs in calls:
        own = error_of(lambda: func(*args, **kwargs))  # noqa: B023
        if own is None:
            assert read(args, kwargs) == (template.format(**func(*args, **kwargs)), 1)
        else:
            with pytest.raises(TypeError) as error:
                read(args, kwargs)
            assert str(error.value) == str(own)


@given(st.lists(st.sampled_from([*"{}[].!:r0>5 ", "a", "b", "{a}", "{b[0]}", "{{"])).map("".join))
def test_any_text_is_a_template_or_refused_at_once(text: str) -> None:
    """Never an error of another kind, and the same text that `str.format` gives."""

    def func(a: int, b: tuple[int, ...], **rest: Any) -> None: ...

    try:
        read = reader(text, 1, func, asynchronous=False)
    except DataError:
        with pytest.raises((ValueError, LookupError, AttributeError, TypeError)):
            # One that is asked for a name or a place nobody knows, or that nobody can read.
            text.format(a=7, b=(8, 9))
        return
    right = error_of(lambda: text.format(a=7, b=(8, 9)))
    if right is not None:
        with pytest.raises(DataError) as raised:
            read((7, (8, 9)), {})
        assert type(raised.value.__cause__) is type(right)
    else:
        assert read((7, (8, 9)), {})[0] == text.format(a=7, b=(8, 9))

"""Values of any message or record type, made from its annotations: the corpus that mutations start from."""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Sequence
from random import Random
from typing import Any, Literal, NewType, Union, get_args, get_origin

import msgspec

_INTEGERS = (0, 1, 2, 3, 127, 128, 300, 70_000, 1 << 20, (1 << 32) - 1, 1 << 40)
_TEXTS = ("", "a", "photos", "replicated(3)", "größer", "x" * 40)


def values_of(kind: Any, rng: Random, n: int) -> list[Any]:
    """`n` instances of each type in `kind`, which may be a union."""
    kinds = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    return [_value(one, rng, 0) for one in kinds for _ in range(n)]


def encoded(values: Sequence[Any]) -> list[bytes]:
    return [msgspec.msgpack.encode(value) for value in values]


def _value(kind: Any, rng: Random, depth: int) -> Any:
    if isinstance(kind, NewType):
        return _value(kind.__supertype__, rng, depth)
    if kind in _PLAIN:
        return _PLAIN[kind](rng)
    if isinstance(kind, type):
        # A message or record: a Struct, or a named tuple.
        make: Any = kind
        values = {name: _value(hint, rng, depth + 1) for name, hint in typing.get_type_hints(make).items()}
        return make(**values)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return _value(rng.choice(arguments), rng, depth)
    if origin is Literal:
        return rng.choice(arguments)
    n = rng.randint(0, 2) if depth < 6 else 0
    if origin is tuple and (len(arguments) != 2 or arguments[1] is not Ellipsis):
        return tuple(_value(argument, rng, depth + 1) for argument in arguments)
    if origin in (tuple, list):
        items = [_value(arguments[0], rng, depth + 1) for _ in range(n)]
        return tuple(items) if origin is tuple else items
    if origin is dict:
        return {_value(arguments[0], rng, depth + 1): _value(arguments[1], rng, depth + 1) for _ in range(n)}
    raise TypeError(f"no values of {kind}")


_PLAIN: dict[Any, Callable[[Random], object]] = {
    int: lambda rng: rng.choice(_INTEGERS),
    float: lambda rng: rng.choice((0.0, 1.5, 1_700_000_000.25)),
    bool: lambda rng: rng.random() < 0.5,
    str: lambda rng: rng.choice(_TEXTS),
    bytes: lambda rng: rng.randbytes(rng.choice((0, 1, 8, 40))),
    types.NoneType: lambda rng: None,
}

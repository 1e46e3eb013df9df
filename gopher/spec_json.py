"""Specs to JSON and back: plain containers become dataclasses whose fields have the annotated types, or one clear sentence."""

import dataclasses
import functools
import json
import typing
from typing import Any, TypeVar

from gopher.errors import UsageError, did_you_mean, require

T = TypeVar("T")


def to_json(spec: Any) -> str:
    """A spec as indented JSON, labels included; `from_json` reads it back."""
    return json.dumps(dataclasses.asdict(spec), indent=2, sort_keys=True) + "\n"


def from_json(kind: type[T], text: str | bytes) -> T:
    """The spec of type `kind` written by `to_json`. Raises ValueError for what is no JSON, `UsageError` for other contents."""
    return build(kind, json.loads(text), kind.__name__)


@functools.cache
def shape_of(kind: Any) -> tuple[dict[str, Any], dict[str, dataclasses.Field[Any]]]:
    """Type hints and fields of a spec class, worked out once."""
    return typing.get_type_hints(kind), {f.name: f for f in dataclasses.fields(kind)}


def build(kind: type[T], values: Any, where: str) -> T:
    """A (nested) spec dataclass from plain containers; unknown, missing and wrongly typed fields raise `UsageError`."""
    require(isinstance(values, dict), f"{where} is {values!r}; give a mapping of fields")
    hints, fields = shape_of(kind)  # type: ignore[arg-type]
    for name in values:
        if name not in fields:
            close = did_you_mean(str(name), list(fields))
            raise UsageError(f"{where} has no field '{name}'{close} (it has {', '.join(fields)})")
    for name, field in fields.items():
        given = (
            name in values
            or field.default is not dataclasses.MISSING
            or field.default_factory is not dataclasses.MISSING
        )
        require(given, f"{where}.{name} is missing; set it")
    return kind(**{name: coerce(hints[name], value, f"{where}.{name}") for name, value in values.items()})


def coerce(hint: Any, value: Any, where: str) -> Any:
    """`value` as the annotated type; whole floats such as 3.0e+11 pass as integers, nothing else is bent."""
    if hint is Any:
        return value
    options = typing.get_args(hint)
    if type(None) in options:
        return None if value is None else coerce(next(o for o in options if o is not type(None)), value, where)
    if typing.get_origin(hint) is tuple:
        require(isinstance(value, (list, tuple)), f"{where} is {value!r}; give a list")
        return tuple(coerce(options[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if typing.get_origin(hint) is dict:
        require(isinstance(value, dict), f"{where} is {value!r}; give a mapping")
        return value
    if dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else build(hint, value, where)  # type: ignore[arg-type]
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        require(abs(value) < 2**1023, f"{where} has {len(str(abs(value)))} digits; give a number that fits a float")
        return float(value)
    if hint is int and isinstance(value, float) and value.is_integer():
        return int(value)
    require(
        isinstance(value, hint) and not (hint in (int, float) and isinstance(value, bool)),
        f"{where} is {value!r}; give a value of type {hint.__name__}",
    )
    return value

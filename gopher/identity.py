"""Identity by content: the key of a run is the hash of what it computes.

Paths, hosts, names and the order of dictionary keys stay out: fields declared with
`label()` in `gopher.spec` are left out of the canonical form. A value without one stable
written form (a callable, a set, NaN) is refused instead of being hashed by its `repr`.
"""

import dataclasses
import hashlib
import json
import math
from typing import Any

from gopher.errors import UsageError


def label(**kwargs: Any) -> Any:
    """A dataclass field that names or places a thing without changing what it computes."""
    return dataclasses.field(metadata={"identity": False}, **kwargs)


def newer(default: Any) -> Any:
    """A dataclass field that came after runs had keys: at its default it stays out of the identity, so that old keys hold."""
    return dataclasses.field(default=default, metadata={"newer": True})


def is_part(field: "dataclasses.Field[Any]", value: Any) -> bool:
    """Whether a field with this value belongs to the identity."""
    return bool(field.metadata.get("identity", True)) and not (
        field.metadata.get("newer", False) and value == field.default
    )


def canonical(value: Any, where: str = "spec") -> Any:
    """`value` as plain JSON types with sorted keys; label fields and newer ones at their default dropped.

    Integers and floats stay apart (1 is not 1.0). Raises `UsageError` for a value that has no stable form.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        kept = [f for f in dataclasses.fields(value) if is_part(f, getattr(value, f.name))]
        return {
            f.name: canonical(getattr(value, f.name), f"{where}.{f.name}") for f in sorted(kept, key=lambda f: f.name)
        }
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise UsageError(f"{where} has the key {key!r}, which is not a string; identity needs string keys")
        return {key: canonical(value[key], f"{where}.{key}") for key in sorted(value)}
    if isinstance(value, (list, tuple)):
        return [canonical(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"{where} is {value}, which cannot be part of an identity; give a finite number")
    if isinstance(value, float) and value == 0:
        return 0.0  # -0.0 computes the same
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise UsageError(
        f"{where} is a {type(value).__name__}, which has no stable written form; make it a number, string, list or dataclass"
    )


def content_hash(value: Any) -> str:
    """SHA-256 (64 hex digits) of the canonical JSON of `value`."""
    text = json.dumps(canonical(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def short_key(value: Any) -> str:
    """The first 12 hex digits of `content_hash`: folder names and `trial.id` tags (48 bits: 10^4 runs collide with p < 2e-7)."""
    return content_hash(value)[:12]


def difference(a: Any, b: Any) -> dict[str, tuple[Any, Any]]:
    """Dotted field -> (value in a, value in b) for every leaf in which two canonical forms differ."""
    left, right = flatten(canonical(a)), flatten(canonical(b))
    pairs = {k: (left.get(k, "(absent)"), right.get(k, "(absent)")) for k in sorted({*left, *right})}
    return {k: (x, y) for k, (x, y) in pairs.items() if x != y}


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """A nested JSON value as {dotted path: leaf}; list items are numbered."""
    if not isinstance(tree, (dict, list)):
        return {prefix: tree}
    items = tree.items() if isinstance(tree, dict) else ((str(i), v) for i, v in enumerate(tree))
    out: dict[str, Any] = {}
    for key, value in items:
        out |= flatten(value, f"{prefix}.{key}" if prefix else key)
    return out

"""Identity by content: keys ignore order, labels and equal spellings, notice every field that matters, refuse what has no stable form."""

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gopher.errors import UsageError
from gopher.identity import canonical, content_hash, difference, flatten, label, newer, short_key

leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
trees = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


@dataclasses.dataclass(frozen=True)
class Thing:
    size: int
    where: str = label(default="here")


@given(st.dictionaries(st.text(max_size=5), trees, max_size=5))
def test_order_of_keys_does_not_matter(tree: dict) -> None:
    assert content_hash(tree) == content_hash(dict(reversed(list(tree.items()))))


@given(trees)
def test_hash_survives_a_json_round_trip(tree: object) -> None:
    assert content_hash(tree) == content_hash(json.loads(json.dumps(canonical(tree))))


@dataclasses.dataclass(frozen=True)
class OlderThing:
    size: int


@dataclasses.dataclass(frozen=True)
class NewerThing:
    size: int
    kind: str = newer("plain")


def test_a_newer_field_changes_no_old_key_until_it_is_used() -> None:
    assert content_hash(NewerThing(size=1)) == content_hash(OlderThing(size=1))
    assert content_hash(NewerThing(size=1, kind="odd")) != content_hash(NewerThing(size=1))


def test_labels_are_no_part_of_identity() -> None:
    assert content_hash(Thing(size=1, where="a")) == content_hash(Thing(size=1, where="b"))
    assert content_hash(Thing(size=1)) != content_hash(Thing(size=2))


@pytest.mark.parametrize("value", [{1, 2}, print, float("nan"), float("inf"), b"bytes", {1: 2}, object()])
def test_values_without_a_stable_form_are_refused(value: object) -> None:
    with pytest.raises(UsageError, match="spec"):
        content_hash({"spec": value} if not isinstance(value, dict) else value)


def test_integers_and_floats_are_different_values() -> None:
    assert content_hash(1) != content_hash(1.0)
    assert content_hash(0.0) == content_hash(-0.0) != content_hash(0)


def test_golden_key_never_changes() -> None:
    assert short_key({"a": [1, 2.5, None, "é"], "b": True}) == "6baaa6d0a34d"


def test_difference_names_dotted_fields() -> None:
    assert difference({"a": {"b": 1, "c": [1, 2]}}, {"a": {"b": 2, "c": [1, 2]}, "d": 0}) == {
        "a.b": (1, 2),
        "d": ("(absent)", 0),
    }


def test_flatten_numbers_list_items() -> None:
    assert flatten({"a": [{"b": 1}], "c": None}) == {"a.0.b": 1, "c": None}

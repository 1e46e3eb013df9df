"""Proves: a marker is read whole or is damage; another format is told apart from it, and what later versions add is passed over."""

import json
from pathlib import Path

import pytest

from gopher.errors import UsageError
from gopher.marker import FORMAT, MARKER, Marker, once_named, read_marker

WHOLE = {"run": "abc", "step": 5, "files": {"a": {"bytes": 1, "sha256": "x"}}}


def marked(folder: Path, content: object) -> Path:
    folder.mkdir(parents=True)
    (folder / MARKER).write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def test_what_was_not_written_yet_has_its_default(tmp_path: Path) -> None:
    plain = Marker(run="abc", step=5, files=WHOLE["files"])  # type: ignore[arg-type]
    assert read_marker(marked(tmp_path / "old", WHOLE)) == plain
    assert read_marker(marked(tmp_path / "new", WHOLE | {"of_a_later_version": 1})) == plain


@pytest.mark.parametrize(
    "content", ["", "{", "[" * 99_999, "5", "[]", {"step": 5}, WHOLE | {"step": "five"}, WHOLE | {"files": []}]
)
def test_anything_else_is_damage(tmp_path: Path, content: object) -> None:
    with pytest.raises(ValueError):
        read_marker(marked(tmp_path / "5", content))
    assert once_named(tmp_path) == frozenset()


@pytest.mark.parametrize("given", [FORMAT + 1, str(FORMAT)])
def test_another_format_is_refused_by_its_value(tmp_path: Path, given: object) -> None:
    with pytest.raises(
        UsageError, match=f"has checkpoint format {given!r}, this version reads {FORMAT}; use the version"
    ):
        read_marker(marked(tmp_path / "5", {"format": given, "shards": []}))


def test_named_ones_are_found(tmp_path: Path) -> None:
    marked(tmp_path / "0000000005", WHOLE)
    marked(tmp_path / "0000000008", WHOLE | {"step": 8, "named": True})
    assert once_named(tmp_path) == {8} and once_named(tmp_path / "none") == frozenset()

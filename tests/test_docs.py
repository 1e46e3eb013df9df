"""The documents say what is true: relative links lead somewhere, commands name verbs and keys that exist."""

import re
from pathlib import Path

import pytest

from gopher.errors import UsageError
from sweeps.cli import VERBS
from sweeps.compose import compose, hydra_session

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "LOG.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_relative_links_and_pictures_exist(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)", page.read_text("utf-8"))
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing


def commands() -> list[str]:
    text = "".join(p.read_text("utf-8") for p in [*PAGES, *(ROOT / "conf").rglob("*.yaml")])
    found = re.findall(r"gopher (?:plan|launch|status|fit|report|ui|suggest)(?: [a-z_.0-9]+=[^\s`;|)]+)+", text)
    return sorted({command.rstrip(",.") for command in found})


@pytest.mark.parametrize("command", commands())
def test_documented_commands_compose(command: str) -> None:
    """Placeholders in capitals stand for the user's own names, so only the keys of those are checked."""
    verb, *words = command.split()[1:]
    assert verb in VERBS
    known = [w for w in words if not re.search(r"=[A-Z]+$|=['\"(]", w)]
    with hydra_session():
        try:
            compose([w.replace("data.path=DIR", "data.path=x") for w in known])
        except UsageError as error:
            raise AssertionError(f"{command}: {error}") from None


def test_the_readme_names_its_two_commands() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    assert "make demo" in text and "make test" in text

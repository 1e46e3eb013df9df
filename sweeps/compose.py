"""Hydra composes here and nowhere else: overrides in, plain resolved containers out.

Hydra's compose API is process-global, so this runs in the main thread; everything after it works on plain dictionaries.
"""

import functools
import re
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gopher.errors import UsageError, did_you_mean
from gopher.identity import flatten
from sweeps.conf_dir import CONF_DIR

# keys below these are the user's own: axes to sweep, CSV columns, weights of subsets, seeds of rungs
FREE_FORM = ("axes", "columns", "data.weights", "extra_seeds", "pinned", "target", "task")
# the only text with ${ in it that is let through: a reference to another key. Resolvers read the environment or run code of plug-ins.
REFERENCE = re.compile(r"\$\{([\w.]+)\}")
ENVIRONMENT = re.compile(r"\$\{oc\.env:\w+\}")
MAY_BE_EMPTY = ("where",)
FROM_ENVIRONMENT = (
    "tracking.uri",
)  # may hold a password, which a command line would show to every user of the machine


@dataclass(frozen=True, kw_only=True)
class Word:
    """One override as Hydra reads it; `value` is plain (a mapping, a list, a text without its quotes)."""

    text: str
    sigil: str  # "", +, ++ or ~
    key: str
    value: Any

    @property
    def leaves(self) -> dict[str, Any]:
        """Dotted keys that it sets -> values: optim={lr: 1} sets optim.lr."""
        filled = self.value if isinstance(self.value, dict) and self.value else {}
        return flatten(filled, self.key) if filled else {self.key: self.value}


@dataclass(frozen=True, kw_only=True)
class Composed:
    """One composition: the resolved tree and the keys that interpolations read (setting those later would be too late)."""

    tree: dict[str, Any]
    interpolated: frozenset[str]


@contextmanager
def hydra_session(config_dir: Path | None = None):  # type: ignore[no-untyped-def]
    """Hydra initialised on the shipped configs, with the user's folder of additional ones in front if given."""
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    composition.cache_clear()
    known_keys.cache_clear()
    with initialize_config_dir(str(config_dir or CONF_DIR), version_base="1.3"):
        yield


@functools.cache
def groups() -> dict[str, list[str]]:
    """Config group -> its choices, as shipped."""
    return {
        d.name: sorted(f.stem for f in d.glob("*.yaml"))
        for d in sorted(CONF_DIR.iterdir())
        if d.is_dir() and any(d.glob("*.yaml"))
    }


def compose(overrides: Sequence[str]) -> Composed:
    """The config under `overrides`, inside a `hydra_session`. Raises `UsageError`: value, cure, closest key."""
    return composition(tuple(overrides))


@functools.lru_cache(maxsize=8)  # a command composes its own words more than once, at a tenth of a second each
def composition(overrides: tuple[str, ...]) -> Composed:
    from hydra import compose as hydra_compose
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    for override in overrides:
        check_override(override)
    words = [read_word(o) for o in overrides]
    for word in words:
        check_reach(word)
    chosen = choices_of(words)
    try:
        config = hydra_compose("config", overrides=[text for word in words for text in free_form(word)])
        texts = {k: v for k, v in flatten(OmegaConf.to_container(config, resolve=False)).items() if isinstance(v, str)}
        for key, text in texts.items():  # a config file is held to the same rules as an override
            check_text(key, text)
        tree = OmegaConf.to_container(config, resolve=True)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise explain(error, words, chosen) from None
    for word in words:  # an addition could name a key that nothing reads, a value could replace a whole section
        if sentence := misplaced(word, chosen):
            raise UsageError(sentence)
    assert isinstance(tree, dict)
    interpolated = frozenset(key for text in texts.values() for key in REFERENCE.findall(text))
    return Composed(tree={str(k): v for k, v in tree.items()}, interpolated=interpolated)


def check_override(override: str) -> None:
    """Refuse, before Hydra reads it, what reaches beyond the config: Hydra's own settings, class names, resolvers."""
    key, _, value = override.partition("=")
    bare = key.lstrip("+~")
    if bare.partition(".")[0].partition("/")[0] == "hydra":
        raise UsageError(
            f"{bare} is a setting of Hydra itself, which is fixed; `gopher plan --cfg` shows what can be set"
        )
    if override == f"{key}=" and bare not in MAY_BE_EMPTY:  # as a shell leaves it behind for a variable that is not set
        raise UsageError(f"{bare} is given without a value; leave it out, or give one (null where it may be none)")
    check_text(bare, value)


def check_text(key: str, value: str) -> None:
    if "_target_" in key or "_target_" in value:
        raise UsageError(f"{key} names a _target_, but no class is ever made from a config; leave it out")
    rest = ENVIRONMENT.sub("", value) if key in FROM_ENVIRONMENT else value
    if "${" in key or "${" in REFERENCE.sub("", rest):
        raise UsageError(
            f"{key} is {value}, but a value may only refer to another key, as in ${{optim.lr}}; "
            f"only {' and '.join(FROM_ENVIRONMENT)} may be read from the environment, as ${{oc.env:NAME}}"
        )


@functools.lru_cache(maxsize=256)
def read_word(override: str) -> Word:
    """The override in its parts. Raises `UsageError` with the cure where its grammar is wrong."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import QuotedString
    from hydra.errors import HydraException

    key, equals, value = override.partition("=")
    if not equals and not override.startswith("~"):
        raise UsageError(f"'{override}' is not an override; write key=value, for example optim.lr=0.01")
    section, _, last = key.lstrip("+~").rpartition(".")
    if section and last[:1].isdigit():  # a name such as 54k, which the grammar takes for a number
        raise UsageError(f"{key} cannot be read; write '{section}={{{last}: {value}}}'")
    try:
        parsed = OverridesParser.create().parse_override(override)
    except HydraException as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"'{override}' cannot be read ({reason}); quote the value: '{key}=\"...\"'") from None
    if parsed.is_sweep_override():
        raise UsageError(
            f"{key} is {value}; for a run of each write axes.{key}=[...], for a text quote it: '{key}=\"...\"'"
        )
    given = parsed._value
    return Word(
        text=override,
        sigil=key[: len(key) - len(key.lstrip("+~"))],
        key=key.lstrip("+~"),
        value=given.text if isinstance(given, QuotedString) else given,
    )


def check_reach(word: Word) -> None:
    """Only the choices of a group can be chosen, no other file; only what is the user's own can be taken away."""
    choices = groups()
    if word.sigil == "~" and not word.key.startswith(tuple(f"{f}." for f in FREE_FORM)):
        raise UsageError(f"{word.text} would take a part of the config away; give {word.key} another value instead")
    bare = word.key.partition("@")[0].strip("/")
    if bare in choices and str(word.value) not in choices[bare]:
        given = word.text.partition("=")[2]
        close = did_you_mean(given, choices[bare])
        raise UsageError(f"{bare}={given} is not a known choice{close} ({bare} has {', '.join(choices[bare])})")


def choices_of(words: Sequence[Word]) -> tuple[str, ...]:
    """The group choices among the words that decide which keys there are: all but the model, whose files have the same keys."""
    return tuple(w.text for w in words if w.key in groups() and w.key != "model")


def is_free_form(key: str) -> bool:
    return key in FREE_FORM or key.startswith(tuple(f"{f}." for f in FREE_FORM))


def free_form(word: Word) -> list[str]:
    """`axes.optim.lr=[...]` may name a key that the config does not have yet, so it is added or replaced; `axes={}` empties."""
    if word.sigil or not is_free_form(word.key):
        return [word.text]
    value = word.text.partition("=")[2].replace(" ", "")
    if word.key in FREE_FORM and value == "{}":  # Hydra would merge nothing into what is there
        return [f"~{word.key}", f"+{word.text}"]
    return [f"++{word.text}"]


def explain(error: Exception, words: Sequence[Word], chosen: tuple[str, ...]) -> UsageError:
    """Hydra's error as one sentence with the value and the cure."""
    for word in words:
        if sentence := misplaced(word, chosen):
            return UsageError(sentence)
    return UsageError(" ".join(str(error).split()) + "; run `gopher plan --cfg` to see the whole config")


def misplaced(word: Word, chosen: tuple[str, ...]) -> str | None:
    """What is wrong with where a word puts its value under these group choices; None when every key is known."""
    if word.key in groups() or word.sigil == "~":
        return None
    keys = known_keys(chosen)
    if keys.get(word.key) is dict and not isinstance(word.value, dict):
        inner = next((k for k in keys if k.startswith(f"{word.key}.")), f"{word.key}.KEY")
        return f"{word.key} is {word.value!r} but has keys of its own; set those, as in {inner}=..., or give a mapping {{...}}"
    if keys.get(word.key) is list and not isinstance(word.value, list) and word.value is not None:
        return f"{word.key} is {word.value!r}; give a list of values, for example {word.key}=[...]"
    for key in word.leaves:
        if key not in keys and not is_free_form(key) and keys.get(word.key) is not list:
            close = did_you_mean(key, [*keys, *groups()])
            return f"unknown key '{key}'{close}; run `gopher plan --cfg` to see every key"
    return None


@functools.lru_cache(maxsize=8)
def known_keys(chosen: tuple[str, ...]) -> dict[str, type]:
    """Every dotted key of the composition under these group choices, inner nodes included, and the type of its value."""
    from hydra import compose as hydra_compose
    from omegaconf import OmegaConf

    found: dict[str, type] = {}
    tree = OmegaConf.to_container(hydra_compose("config", overrides=list(chosen)), resolve=False)
    assert isinstance(tree, dict)
    waiting: list[tuple[Any, Any]] = list(tree.items())
    while waiting:
        key, value = waiting.pop(0)
        found[str(key)] = type(value)
        if isinstance(value, dict):
            waiting += [(f"{key}.{name}", inner) for name, inner in value.items()]
    return found

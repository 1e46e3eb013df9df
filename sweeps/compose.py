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
FROM_ENVIRONMENT = (
    "tracking.uri",
)  # may hold a password, which a command line would show to every user of the machine
OVERRIDE = re.compile(r"^(?P<sigil>\+\+|\+|~)?(?P<key>[A-Za-z_][\w./@-]*)(=(?P<value>.*))?$", re.DOTALL)


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
    try:
        config = hydra_compose("config", overrides=[word for o in overrides for word in free_form(o)])
        texts = {k: v for k, v in flatten(OmegaConf.to_container(config, resolve=False)).items() if isinstance(v, str)}
        for key, text in texts.items():  # a config file is held to the same rules as an override
            check_text(key, text)
        tree = OmegaConf.to_container(config, resolve=True)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise explain(error, overrides) from None
    check_additions(overrides)
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


def check_additions(overrides: Sequence[str]) -> None:
    """`+key=value` could add a key that nothing reads: it must exist, as without the plus."""
    for override in overrides:
        match = OVERRIDE.match(override) if override.startswith("+") else None
        chosen = [o for o in overrides if o.split("=", 1)[0] in groups()]
        if match and (sentence := explain_override(match["key"], match["value"] or "", chosen)):
            raise UsageError(sentence)


def is_free_form(key: str) -> bool:
    return key in FREE_FORM or key.startswith(tuple(f"{f}." for f in FREE_FORM))


def free_form(override: str) -> list[str]:
    """`axes.optim.lr=[...]` may name a key that the config does not have yet, so it is added or replaced; `axes={}` empties."""
    key, _, value = override.partition("=")
    if key in FREE_FORM and value.replace(" ", "") == "{}":  # Hydra would merge nothing into what is there
        return [f"~{key}", f"+{override}"]
    return [f"++{override}" if is_free_form(key) else override]


def explain(error: Exception, overrides: Sequence[str]) -> UsageError:
    """Hydra's error as one sentence with the value and the cure."""
    chosen = [o for o in overrides if o.split("=", 1)[0] in groups()]
    for override in sorted(overrides, key=lambda o: o not in chosen):  # a wrong choice explains keys that are missing
        match = OVERRIDE.match(override)
        if match is None or (match["value"] is None and match["sigil"] != "~"):
            return UsageError(f"'{override}' is not an override; write key=value, for example optim.lr=0.01")
        sentence = explain_override(match["key"], match["value"] or "", chosen)
        if sentence:
            return UsageError(sentence)
    return UsageError(" ".join(str(error).split()) + "; run `gopher plan --cfg` to see the whole config")


def explain_override(key: str, value: str, chosen: Sequence[str]) -> str | None:
    """What is wrong with one override under the group choices `chosen`, or None when its key and choice exist."""
    choices = groups()
    if key in choices:
        if value in choices[key] or value == "null":
            return None
        return f"{key}={value} is not a known choice{did_you_mean(value, choices[key])} ({key} has {', '.join(choices[key])})"
    keys = known_keys(chosen)
    if key in keys or is_free_form(key):
        return None
    return f"unknown key '{key}'{did_you_mean(key, [*keys, *choices])}; run `gopher plan --cfg` to see every key"


def known_keys(chosen: Sequence[str]) -> list[str]:
    """Every dotted key of the composition under these group choices, inner nodes included."""
    from hydra import compose as hydra_compose
    from omegaconf import OmegaConf

    tree = OmegaConf.to_container(hydra_compose("config", overrides=list(chosen)), resolve=False)
    leaves = list(flatten(tree))
    return sorted({".".join(leaf.split(".")[: i + 1]) for leaf in leaves for i in range(leaf.count(".") + 1)})

"""From a composed config to frozen specs: a sweep is rungs x axes, expanded and checked before anything starts."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gopher import corpus, data
from gopher.errors import UsageError, did_you_mean
from gopher.identity import flatten
from gopher.parent import Parent, find_parent
from gopher.spec import DataSpec, Placement, RunSpec, SubsetSpec, TokenizerSpec, check_shares, plain_name
from gopher.spec_json import build
from sweeps.compose import Composed, compose, groups, hydra_session, read_word

RUN_SECTIONS = ("model", "optim", "batch", "precision", "evaluation")
RUN_GROUPS = ("data", "tokenizer", "optim", "precision", "evaluation")  # config groups that may be an axis
ROWS_PER_RUN = 200  # training metrics kept per run: enough for any chart, cheap in any store


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """A run of the sweep with how it is to be executed and the config it was made from."""

    spec: RunSpec
    placement: Placement
    config: dict[str, Any]


def run_name(spec: RunSpec) -> str:
    """What people read: rung, maximum learning rate, seed. Runs that differ in anything else share it."""
    return f"{spec.rung}-lr{spec.optim.lr:g}-s{spec.seed}"


@dataclass(frozen=True, kw_only=True)
class Study:
    """A sweep as data: its name, its rungs in ladder order, its runs."""

    name: str
    rungs: tuple[str, ...]
    runs: tuple[PlannedRun, ...]

    @property
    def specs(self) -> list[RunSpec]:
        return [run.spec for run in self.runs]


ComposeFn = Callable[[Sequence[str]], Composed]


def load_study(compose: ComposeFn, overrides: Sequence[str]) -> Study:
    """All runs of the sweep that `overrides` describe. Raises `UsageError` before anything is written."""
    for override in overrides:
        key, _, value = override.partition("=")
        if key in ("model", "rung", "axes.model", "axes.rung"):
            raise UsageError(f"{override} names a model but a sweep names its rungs; write rungs=[{value.strip('[]')}]")
    base = compose(overrides).tree
    refuse_overruled(overrides, base)
    rungs = check_rungs(base["rungs"])
    texts = Inputs(Path(base["output_root"]))
    runs = [run for rung in rungs for run in expand_rung(compose, overrides, rung, texts)]
    unique = {run.spec.key: run for run in runs}  # two axis values may mean the same run
    return Study(name=check_name(base["name"]), rungs=rungs, runs=tuple(unique.values()))


def study_of(overrides: Sequence[str]) -> Study:
    """The sweep that `gopher VERB *overrides` works on, for Python: the same runs with the same keys.

    >>> [run.spec.key for run in study_of(["sweep=demo", "axes.optim.lr=[0.01,0.02]"]).runs]  # doctest: +SKIP

    Hydra composes in the main thread only. Raises `UsageError` like the command.
    """
    with hydra_session():
        return load_study(compose, overrides)


def refuse_overruled(overrides: Sequence[str], tree: dict[str, Any]) -> None:
    """A value beside an axis over the same key would change nothing, which nobody means."""
    axes = axis_lists(tree["axes"])
    for word in map(read_word, overrides):
        for key, value in word.leaves.items():
            if key in axes:
                raise UsageError(
                    f"{word.text} would do nothing, because the sweep has axes.{key}={axes[key]}; write axes.{key}=[{value}]"
                )


def check_name(name: Any) -> str:
    if not isinstance(name, str) or not plain_name(name):
        raise UsageError(
            f"name is {name!r}; use letters, digits, '_', '-' and '.', it names a folder and an MLflow experiment"
        )
    return name


def check_rungs(rungs: Any) -> tuple[str, ...]:
    known = groups()["model"]
    if not isinstance(rungs, list) or not rungs:
        raise UsageError(f"rungs is {rungs!r}; give a list such as rungs=[54k,121k] (there are {', '.join(known)})")
    for i, rung in enumerate(rungs):
        if str(rung) not in known:
            raise UsageError(
                f"rungs[{i}] is '{rung}', which is no model config{did_you_mean(str(rung), known)} (there are {', '.join(known)})"
            )
    return tuple(dict.fromkeys(str(r) for r in rungs))


def expand_rung(compose: ComposeFn, overrides: Sequence[str], rung: str, texts: "Inputs") -> list[PlannedRun]:
    """One rung's runs: the product of its axes. Group choices and keys that others refer to are composed, the rest are set."""
    first = compose([*overrides, f"model={rung}"])
    axes = check_axes(first, rung)
    composed_axes = [a for a in axes if a in RUN_GROUPS or a in first.interpolated]
    plain_axes = [a for a in axes if a not in composed_axes]
    runs = []
    for choice in itertools.product(*(axes[a] for a in composed_axes)):
        extra = [f"{a}={value}" for a, value in zip(composed_axes, choice, strict=True)]
        tree = compose([*overrides, f"model={rung}", *extra]).tree if extra else first.tree
        for values in itertools.product(*(axes[a] for a in plain_axes)):
            runs.append(planned_run(with_values(tree, dict(zip(plain_axes, values, strict=True))), texts))
    return runs


def check_axes(composed: Composed, rung: str) -> dict[str, list[Any]]:
    """Axis key -> values for one rung, its extra seeds joined; unknown keys and non-lists are errors."""
    axes = axis_lists(composed.tree["axes"])
    weights = [f"data.weights.{s['name']}" for s in composed.tree["data"]["subsets"] if isinstance(s, dict)]
    known = [*flatten(run_sections(composed.tree)), *RUN_GROUPS, "data.weights", *weights]
    for key, values in axes.items():
        if key.split(".")[0] in ("placement", "cluster", "tracking"):
            raise UsageError(
                f"axes.{key} does not change what a run computes, so it cannot be an axis; set {key} for the whole sweep"
            )
        free = (
            key.startswith("data.weights.") and composed.tree["data"]["kind"] == "local"
        )  # its folders name the subsets
        if key not in known and not free:
            raise UsageError(f"axes.{key} is no key of a run{did_you_mean(key, known)}")
        if not isinstance(values, list) or not values:
            raise UsageError(f"axes.{key} is {values!r}; give a list of values, for example axes.{key}=[1,2]")
    extra = composed.tree["extra_seeds"]
    for name, seeds in extra.items():
        if str(name) not in groups()["model"]:
            raise UsageError(f"extra_seeds.{name} is no rung{did_you_mean(str(name), groups()['model'])}")
        if not isinstance(seeds, list) and seeds is not None:
            raise UsageError(f"extra_seeds.{name} is {seeds!r}; give a list, for example 'extra_seeds={{{name}: [1]}}'")
    axes["seed"] = list(dict.fromkeys([*axes.get("seed", [composed.tree["seed"]]), *(extra.get(rung) or [])]))
    return axes


def axis_lists(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested axes ({optim: {lr: [...]}}) and dotted ones ({optim.lr: [...]}) as dotted keys."""
    out: dict[str, Any] = {}
    for key, value in tree.items():
        dotted = f"{prefix}.{key}" if prefix else str(key)
        out |= axis_lists(value, dotted) if isinstance(value, dict) else {dotted: value}
    return out


def run_sections(tree: dict[str, Any]) -> dict[str, Any]:
    """The part of the config that decides a run's numbers."""
    return {k: tree[k] for k in ("seed", "tokens", "tokenizer", "data", "parent", *RUN_SECTIONS)}


def with_values(tree: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """A copy of `tree` with dotted keys set; only the branches that change are copied."""
    tree = dict(tree)
    for key, value in values.items():
        node, parts = tree, key.split(".")
        for part in parts[:-1]:
            node[part] = dict(node[part])
            node = node[part]
        node[parts[-1]] = value
    return tree


def planned_run(tree: dict[str, Any], texts: "Inputs") -> PlannedRun:
    """The frozen run of one fully chosen config. Field errors name the key and the value."""
    text = texts.data_spec(tree["data"])
    tokenizer = build(TokenizerSpec, tree["tokenizer"], "tokenizer")
    tokenizer_key, data_key = texts.keys(text, tokenizer)
    parent = texts.parent(tree["parent"]) if tree["parent"] is not None else None
    sections = {name: tree[name] for name in RUN_SECTIONS}
    fields = {
        "rung": tree["rung"],
        "seed": tree["seed"],
        "tokens": tree["tokens"],
        **sections,
        "data": text,
        "tokenizer": tokenizer,
    }
    keys = {"tokenizer_key": tokenizer_key, "data_key": data_key, "parent": parent.key if parent else None}
    spec = build(RunSpec, {**fields, **keys}, "run")
    if parent:
        parent.check_fits(spec)
    return PlannedRun(spec=spec, placement=placement_of(tree, spec, parent), config=tree)


def placement_of(tree: dict[str, Any], spec: RunSpec, parent: Parent | None) -> Placement:
    values = dict(tree["placement"])
    if values["log_every_steps"] is None:
        values["log_every_steps"] = max(1, spec.steps // ROWS_PER_RUN)
    data_dir = str((Path(tree["output_root"]) / "data" / spec.data_key).absolute())
    folders = {"data_dir": data_dir, "parent_dir": str(parent.folder) if parent else None}
    placement = build(Placement, values | folders, "placement")
    check_shares(spec, placement, placement.workers)
    return placement


class Inputs:
    """What runs depend on, found and hashed once per study: text, the keys made of it, parents."""

    def __init__(self, output_root: Path) -> None:
        self.cache = output_root / "fingerprints.json"
        self._specs: dict[str, DataSpec] = {}
        self._keys: dict[tuple[DataSpec, TokenizerSpec], tuple[str, str]] = {}
        self._parents: dict[str, Parent] = {}

    def data_spec(self, tree: dict[str, Any]) -> DataSpec:
        """The data section as a spec; folders of a local corpus become its subsets, `weights` override any subset's."""
        token = repr(sorted(tree.items(), key=str))
        if token not in self._specs:
            self._specs[token] = resolve_data(tree)
        return self._specs[token]

    def keys(self, spec: DataSpec, tokenizer: TokenizerSpec) -> tuple[str, str]:
        """(tokenizer key, data key) of the text under this tokenizer."""
        if (spec, tokenizer) not in self._keys:
            print_of_text = corpus.fingerprint(spec, self.cache)
            first = data.tokenizer_key(tokenizer, spec, print_of_text)
            self._keys[spec, tokenizer] = (first, data.data_key(spec, first, print_of_text))
        return self._keys[spec, tokenizer]

    def parent(self, path: str) -> Parent:
        if path not in self._parents:
            self._parents[path] = find_parent(Path(path))
        return self._parents[path]


def resolve_data(tree: dict[str, Any]) -> DataSpec:
    values = dict(tree)
    weights = values.pop("weights", None) or {}
    for name, weight in weights.items():
        if isinstance(weight, bool) or not isinstance(weight, (int, float)):
            raise UsageError(f"data.weights.{name} is {weight!r}; give a positive number")
    weights = {name: float(weight) for name, weight in weights.items()}
    if values.get("kind") == "local":
        names = values.get("subsets") or None
        path = Path(values["path"])
        values["subsets"] = corpus.discover(path, weights or None, names)
        values["path"] = str(path.absolute())  # a cluster's workers start in another folder
        return build(DataSpec, values, "data")
    subsets = [build(SubsetSpec, s, f"data.subsets[{i}]") for i, s in enumerate(values["subsets"])]
    for name in weights:
        if name not in [s.name for s in subsets]:
            raise UsageError(f"data.weights.{name} is no subset{did_you_mean(name, [s.name for s in subsets])}")
    chosen = [build(SubsetSpec, {**vars(s), "weight": weights.get(s.name, s.weight)}, "subset") for s in subsets]
    return build(DataSpec, {**values, "subsets": chosen}, "data")

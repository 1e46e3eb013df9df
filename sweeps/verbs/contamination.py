"""`gopher contamination`: which items of evaluation tasks share 13 words in a row with the training text of a sweep."""

import itertools
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gopher.errors import UsageError
from gopher.record import RunFolder
from sweeps.screen import Table, console
from sweeps.settings import Settings, settings_of
from sweeps.study import ComposeFn, load_study


def run(compose: ComposeFn, overrides: Sequence[str]) -> int:
    from gopher.evals.contamination import blocks_of, overlaps
    from gopher.evals.items import items_of, tasks_named

    tree = compose(overrides).tree
    settings = settings_of(tree)
    folder, others = run_folder(compose, overrides, tree, settings)
    names = tree["tasks"]
    if not isinstance(names, list) or not names:
        raise UsageError(f"tasks is {names!r}; name the tasks to look for, such as tasks=[race_h,fever_2way]")
    tasks = tasks_named([str(t) for t in names], tree["tasks_path"], say, settings.root / "evals" / "bundles")
    limit, skipped = settings.exam.limit, tasks.skipped
    items = [item for item in items_of(tasks) if limit is None or item.doc_id < limit]
    readers, tokenizer, data_key = training_text(folder)
    if other_data := sorted(others - {data_key}):
        say(
            f"other runs of the sweep read other text ({', '.join(other_data)}): checkpoint=DIR of such a run looks into that"
        )
    say(f"looking for {len(items):,} items in {sum(r.tokens for r in readers):,} training tokens")
    blocks = itertools.chain.from_iterable(blocks_of(reader, tokenizer) for reader in readers)
    found = overlaps([item.text for item in items], blocks)
    flags: dict[str, dict[int, bool | None]] = {}
    for item, overlap in zip(items, found, strict=True):
        flags.setdefault(item.task, {})[item.doc_id] = overlap.dirty
    scores = subset_scores(settings, folder, tree, flags)
    results = [result_of(task, own) | {"scores": scores.get(task, {})} for task, own in flags.items()]
    groups = [{"task": group, "scores": own} for group, own in scores.items() if group not in flags]
    if settings.format == "json":
        left_out = [{"task": s.task, "reason": s.reason} for s in skipped]
        told = {
            "data": data_key,
            "other_data": other_data,
            "ngram_words": 13,
            "results": results,
            "groups": groups,
            "skipped": left_out,
        }
        print(json.dumps(told, indent=2))
        return 0
    columns = ["task", "items", "dirty", "clean", "too short", "share dirty"]
    lines = [
        [r["task"], *(f"{r[k]:,}" for k in ("items", "dirty", "clean", "unjudged")), percent(r["dirty_share"])]
        for r in results
    ]
    console().print(Table(f"13-gram overlap with the training text {data_key}", columns, lines))
    if scores:
        console().print(scores_table([*results, *groups]))
    for one in skipped:
        console(stderr=True).print(f"left out: {one.task} ({one.reason})", markup=False)
    return 0


def say(message: str) -> None:
    console(stderr=True).print(message, style="dim", markup=False)


def run_folder(
    compose: ComposeFn, overrides: Sequence[str], tree: dict[str, Any], settings: Settings
) -> tuple[Path, set[str]]:
    """The run named by checkpoint=DIR, else the first launched run of the sweep; and the keys of all launched runs' data."""
    from gopher.inference import place

    if tree["checkpoint"]:
        return place(Path(tree["checkpoint"]), None)[0], set()
    runs = load_study(compose, overrides).runs
    launched = [r.spec for r in runs if (settings.run_dir(r.spec.key) / "spec.json").is_file()]
    if not launched:
        raise UsageError("no run of the sweep was launched yet; launch it first, or name a run by checkpoint=DIR")
    return settings.run_dir(launched[0].key), {spec.data_key for spec in launched}


def training_text(folder: Path) -> tuple[list[Any], Any, str]:
    """(training splits of all subsets, tokenizer, key of the data) of a run."""
    from gopher.data import TokenStore
    from gopher.inference import tokenizer_of

    run = RunFolder(folder)
    spec = run.spec()
    store = TokenStore.open(run.placement().data_dir)
    readers = [store.reader(name, "train") for name in store.manifest["subsets"]]
    return readers, tokenizer_of(folder, spec, None), spec.data_key


def result_of(task: str, flags: dict[int, bool | None]) -> dict[str, Any]:
    """Counts and the ids of dirty items of one task; too short items are neither dirty nor clean."""
    dirty = [doc for doc, flag in flags.items() if flag]
    judged = sum(flag is not None for flag in flags.values())
    return {
        "task": task,
        "items": len(flags),
        "dirty": len(dirty),
        "clean": judged - len(dirty),
        "unjudged": len(flags) - judged,
        "dirty_share": len(dirty) / judged if judged else None,
        "dirty_ids": dirty,
    }


def subset_scores(
    settings: Settings, folder: Path, tree: dict[str, Any], flags: dict[str, dict[int, bool | None]]
) -> dict[str, dict[str, Any]]:
    """Task -> metric -> mean, error and number on all, clean, dirty and unjudged items; empty unless scores=true.

    Answers are those that `gopher eval` keeps, so that nothing is scored twice.
    """
    if not tree["scores"]:
        return {}
    from gopher.evals.checkpoints import checkpoints_of
    from gopher.evals.contamination import by_subset
    from gopher.evals.scores import answer_all, compile_exam, lacking, scored_seeds, store_of

    exam, root = replace(settings.exam, seeds=settings.exam.seeds[:1]), folder.absolute().parents[1]
    checkpoint = checkpoints_of(Path(tree["checkpoint"] or folder), "last", floor=False)[-1]
    say(f"scoring {checkpoint.spec.rung} after {checkpoint.step} steps on them")
    compiled, store = compile_exam(exam, root, say), store_of(exam, root)
    answer_all(lacking([checkpoint], compiled, store), compiled, store)
    (found,) = scored_seeds(compiled, store, checkpoint.sha256)
    out: dict[str, dict[str, Any]] = {}
    members: dict[Any, bool | None] = {(task, doc): flag for task, own in flags.items() for doc, flag in own.items()}
    for (task, metric), score in found.items.items():
        subsets = by_subset(score, flags.get(task, members))
        if metric == "chance":  # is known, not measured
            subsets = {name: {**part, "stderr": None} for name, part in subsets.items()}
        out.setdefault(task, {})[metric] = subsets
    return out


def scores_table(results: Sequence[dict[str, Any]]) -> Any:
    parts = ("all", "clean", "dirty", "unjudged")
    lines = [
        [r["task"], metric, *(value_of(subsets[part]) for part in parts)]
        for r in results
        for metric, subsets in r["scores"].items()
    ]
    return Table("mean +- standard error (items)", ["task", "metric", *parts], lines)


def value_of(part: dict[str, Any]) -> str:
    if part["value"] is None:
        return "-"
    error = "" if part["stderr"] is None else f" +- {part['stderr']:.3f}"
    return f"{part['value']:.3f}{error} ({part['n']:,})"


def percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"

"""Run folders of a small study as training would have left them, with losses of a known law. Shared by the tracking tests."""

import math
import random
from pathlib import Path

from gopher.record import FINISHED, QUEUED, RunFolder, RunState
from gopher.size import params_non_embedding, train_flops
from gopher.spec import (
    BatchSpec,
    DataSpec,
    EvalSpec,
    ModelSpec,
    OptimSpec,
    Placement,
    PrecisionSpec,
    RunSpec,
    SubsetSpec,
    TokenizerSpec,
)

SUBSETS = {"speeches": 0.5, "factbook": 0.2, "code": 0.3}
MANIFEST = {  # of shards in which every subset has as much distinct text
    "sha256": "da7a",
    "tokenizer": {"sha256": "70c3"},
    "subsets": {n: {"train": {"tokens": 20_000}} for n in SUBSETS},
}
SHIFT = {"speeches": 0.3, "factbook": -0.1, "code": -0.45}  # of a subset's loss against the mixture's
SHAPES = {"54k": (4, 32), "121k": (4, 48), "268k": (5, 64), "601k": (5, 96), "1_3m": (6, 128)}  # layers, width


def study_spec(rung: str, seed: int, tokens: int = 1_000_000) -> RunSpec:
    layers, width = SHAPES[rung]
    subsets = tuple(SubsetSpec(name=n, weight=w, origin=n, revision="1") for n, w in SUBSETS.items())
    return RunSpec(
        rung=rung,
        seed=seed,
        model=ModelSpec(n_layers=layers, n_heads=width // 16, d_head=16, d_model=width, vocab_size=2048, context=128),
        data=DataSpec(kind="package", subsets=subsets),
        tokenizer=TokenizerSpec(vocab_size=2048),
        optim=OptimSpec(lr=0.01, warmup_steps=5),
        batch=BatchSpec(sequences=8),
        precision=PrecisionSpec(),
        evaluation=EvalSpec(points=10, tokens_per_subset=4096),
        tokens=tokens,
        tokenizer_key="t" * 12,
        data_key="d" * 12,
    )


def queued_folder(root: Path, spec: RunSpec) -> RunFolder:
    """The folder of a run that has not begun."""
    folder = RunFolder(root / "runs" / spec.key)
    provenance = {
        "git": {"commit": "c0ffee", "dirty": False, "changed": []},
        "config": {"rung": spec.rung},
        "config_hash": "beef",
    }
    folder.create(spec, Placement(data_dir=str(root / "data" / spec.data_key)), provenance)
    folder.write_state(RunState(state=QUEUED))
    return folder


def loss_after(spec: RunSpec, step: int, noise: float) -> float:
    """Chinchilla-shaped: E + A/N^0.34 + B/D^0.28, from ln(vocabulary) at step 0."""
    tokens = max(spec.tokens_before(step), 1)
    reached = 1.5 + 60 * params_non_embedding(spec.model) ** -0.34 + 90 * tokens**-0.28
    return min(reached, math.log(2048)) + noise


def spent(spec: RunSpec, step: int, prefix: str) -> dict[str, float | None]:
    flops = train_flops(spec, step)
    values: dict[str, float | None] = {f"{prefix}/tokens": float(spec.tokens_before(step))}
    values |= {f"{prefix}/flops": flops} if prefix != "train" else {}
    return values | ({f"{prefix}/log10_flops": math.log10(flops)} if step else {})


def log_steps(folder: RunFolder, first: int, last: int, every: int = 10) -> None:
    """The log lines of steps `first` to `last`, the same ones whenever it is called (as an exact resume gives them)."""
    spec = folder.spec()
    for step in range(first, last + 1):
        draw = random.Random(f"{spec.key} {step}")
        if step and (step % every == 0 or step in (1, spec.steps)):
            train = {
                "train/loss": loss_after(spec, step, draw.gauss(0, 0.05)),
                "train/grad_norm": 0.4 + draw.random() / 5,
            }
            pace = 4e9 / params_non_embedding(spec.model) * draw.uniform(0.9, 1.0)
            rest = {"train/lr": spec.optim.lr, "perf/tokens_per_s": pace, "perf/step_s": spec.batch_tokens(0) / pace}
            folder.log(step, train | rest | spent(spec, step, "train"))
        if step in spec.evaluation_steps:
            folder.log(step, evaluated(spec, step) | spent(spec, step, "val"))
        if step == spec.steps:
            final = {k.replace("val/", "final/val_"): v for k, v in evaluated(spec, step).items()}
            size = math.log10(params_non_embedding(spec.model))
            cost = {"final/train_seconds": 60.0, "final/worker_hours": 1 / 60, "final/log10_params_nonemb": size}
            folder.log(step, final | spent(spec, step, "final") | cost)


def evaluated(spec: RunSpec, step: int) -> dict[str, float | None]:
    draw = random.Random(f"{spec.key} val {step}")
    losses = {name: loss_after(spec, step, SHIFT[name] + draw.gauss(0, 0.005)) for name in SUBSETS}
    values: dict[str, float | None] = {f"val/loss_{n}": v for n, v in losses.items()}
    values |= {f"val/bpb_{n}": v / 2.6 for n, v in losses.items()}
    mean = sum(SUBSETS[n] * v for n, v in losses.items())
    return values | {"val/loss": mean, "val/bpb": mean / 2.6}


def finished_folder(root: Path, spec: RunSpec, every: int = 10) -> RunFolder:
    """The folder of a run that was trained to its end."""
    folder = queued_folder(root, spec)
    log_steps(folder, 0, spec.steps, every)
    folder.write_state(RunState(state=FINISHED, step=spec.steps, attempt=1))
    return folder

"""Training steps of the paper's rungs on one GPU: ours against rotary attention and eager relative attention, and MFU.

Compiled block by block, sharded by FSDP2 on one rank, forward, backward and optimizer step; the variants take turns,
the best of the rounds counts. bfloat16 compute over float32 parameters; the 7.1B rung has bfloat16 parameters with
stochastic rounding, so that it fits on one card. Needs torch >= 2.11 with Triton, numpy and sentencepiece, nothing else.

    python benchmarks/gpu_step.py                                all rungs, a table
    python benchmarks/gpu_step.py --rungs 44m,117m --json        rows of name, baseline, ratio, goal
    python benchmarks/gpu_step.py --device cpu --rungs tiny      does it run; its figures mean nothing
"""

import argparse
import gc
import json
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from train_step import Eager, Rotary

from gopher.model import Block, Transformer, initialise
from gopher.optim import clip_scale, optimizer_of
from gopher.shard import DTYPES, parts, process_group, shard
from gopher.size import mfu, peak_flops
from gopher.spec import (
    BatchSpec,
    DataSpec,
    EvalSpec,
    ModelSpec,
    OptimSpec,
    PrecisionSpec,
    RunSpec,
    SubsetSpec,
    TokenizerSpec,
)

# layers, heads, head width, sequences per step; goals: ratio to rotary, ratio to eager, MFU
RUNGS: dict[str, tuple[int, int, int, int]] = {
    "tiny": (2, 2, 32, 2),
    "44m": (8, 16, 32, 32),
    "117m": (12, 12, 64, 32),
    "417m": (12, 12, 128, 16),
    "1.4b": (24, 16, 128, 8),
    "7.1b": (32, 32, 128, 2),
}
ROTARY_GOAL = {"44m": 0.60, "117m": 0.70, "417m": 0.80, "1.4b": 0.83, "7.1b": 0.88}
EAGER_GOAL = {"44m": 2.5}
MFU_GOAL = {"44m": 0.17, "117m": 0.28, "417m": 0.40, "1.4b": 0.45, "7.1b": 0.50}
CONTEXT, VOCABULARY, WARM_STEPS = 2048, 32_000, 3
Step = Callable[[], None]


def run_of(rung: str) -> RunSpec:
    layers, heads, width, sequences = RUNGS[rung]
    tiny, narrow = rung == "tiny", rung == "7.1b"
    dtype = "float32" if tiny else "bfloat16"
    model = ModelSpec(
        n_layers=layers,
        n_heads=heads,
        d_head=width,
        d_model=heads * width,
        vocab_size=512 if tiny else VOCABULARY,
        context=64 if tiny else CONTEXT,
    )
    return RunSpec(
        rung=rung,
        seed=0,
        model=model,
        data=DataSpec(kind="local", path="-", subsets=(SubsetSpec(name="x", weight=1.0, origin="x"),)),
        tokenizer=TokenizerSpec(vocab_size=model.vocab_size),
        optim=OptimSpec(lr=1e-4, warmup_steps=1),
        batch=BatchSpec(sequences=sequences),
        precision=PrecisionSpec(
            parameters="bfloat16" if narrow else "float32", compute=dtype, stochastic_rounding=narrow
        ),
        evaluation=EvalSpec(),
        tokens=1000 * sequences * model.context,
        tokenizer_key="x",
        data_key="x",
    )


def step_of(run: RunSpec, block: type[Block], device: str) -> Step:
    """One optimizer step of the run's model with this kind of block, built as `gopher.shard.build` does."""
    mesh = init_device_mesh(device, (1,))
    with torch.device("meta"):
        model = Transformer(run.model)
        if block is not Block:
            model.blocks = nn.ModuleList(block(run.model, "none") for _ in range(run.model.n_layers))
    if block is Rotary:
        for b in model.blocks:  # what it has no use for
            del b.position, b.u, b.v
    model.to(DTYPES[run.precision.parameters])
    shard(model, run.precision, mesh, compile_blocks=device == "cuda")
    model.to_empty(device=device)
    initialise(((p.name, p.local, p.place) for p in parts(model)), run.model, run.seed)
    adam = optimizer_of(parts(model), run)
    draws = torch.Generator().manual_seed(0)
    tokens = torch.randint(3, run.model.vocab_size, (run.batch.sequences, run.model.context + 1), generator=draws)
    inputs, targets = tokens[:, :-1].to(device), tokens[:, 1:].to(device)

    def step() -> None:
        (model(inputs, targets) / inputs.numel()).backward()
        adam.step(1, 1e-5, clip_scale(adam.squared_norm(), 1.0))
        adam.zero_grad()

    return step


def seconds(step: Step, device: str) -> float:
    began = time.perf_counter()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def measure(rung: str, device: str, rounds: int) -> list[dict[str, Any]]:
    run, best = run_of(rung), {}
    wanted: dict[str, type[Block]] = {"ours": Block, "rotary": Rotary}
    if rung in ("44m", "tiny"):
        wanted["eager"] = Eager  # its score matrices fill the card beyond
    together = rung != "7.1b"  # two models of 7.1B do not fit on one card: one after the other
    for names in [list(wanted)] if together else [[name] for name in wanted]:
        steps = {name: step_of(run, wanted[name], device) for name in names}
        for step in steps.values():
            for _ in range(WARM_STEPS):
                seconds(step, device)
        for _ in range(rounds):
            for name, step in steps.items():
                best[name] = min(best.get(name, float("inf")), seconds(step, device))
        del steps, step
        gc.collect()
        if device == "cuda":
            torch.cuda.empty_cache()
    tokens = run.batch.sequences * run.model.context
    rate = {name: tokens / s for name, s in best.items()}
    rows = [row(f"{rung} against {n}", f"{rate[n]:,.0f} tok/s", rate["ours"] / rate[n], goal.get(rung))
            for n, goal in (("rotary", ROTARY_GOAL), ("eager", EAGER_GOAL)) if n in rate]  # fmt: skip
    peak = peak_flops(torch.cuda.get_device_name()) if device == "cuda" else None
    if peak is not None:
        used = mfu(run.model, rate["ours"], peak)
        rows.append(row(f"{rung} MFU", f"peak {peak / 1e12:.0f} TFLOP/s", used, MFU_GOAL.get(rung)))
    return rows


def row(name: str, baseline: str, ratio: float, goal: float | None) -> dict[str, Any]:
    return {
        "name": name,
        "baseline": baseline,
        "ratio": ratio,
        "goal": goal and f">= {goal}",
        "met": goal and ratio >= goal,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rungs", default="44m,117m,417m,1.4b,7.1b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--json", action="store_true")
    words = parser.parse_args()
    with process_group(words.device):
        rows = [r for rung in words.rungs.split(",") for r in measure(rung, words.device, words.rounds)]
    device = torch.cuda.get_device_name() if words.device == "cuda" else "cpu"
    if words.json:
        print(json.dumps({"rows": rows, "versions": {"torch": torch.__version__, "device": device}}))
        return
    print(f"torch {torch.__version__}, {device}")
    for r in rows:
        print(
            f"{r['name']:24} {r['ratio']:6.3f}   {r['baseline']:>20}   {r['goal'] or '':8} {'' if r['met'] is None else r['met']}"
        )


if __name__ == "__main__":
    main()

"""Training steps of the paper's rungs on one GPU: ours against rotary attention and eager relative attention, and MFU.

Compiled block by block, sharded by FSDP2 on one rank, forward, backward and optimizer step; the variants take turns,
the best of the rounds counts. bfloat16 compute over float32 parameters; the 7.1B rung has bfloat16 parameters with
stochastic rounding, so that it fits on one card. Needs torch >= 2.11 with Triton and numpy, nothing else; not installed,
it runs beside the package.

Every rung is measured in a process of its own and printed at once: a rung that crashes, or for which memory or time do not
suffice, is named as not measured and takes nothing from the others. A rung that does not fit is tried with half the
sequences, for all its variants.

    python benchmarks/gpu_step.py                                all rungs, a table; within nine minutes and a half
    python benchmarks/gpu_step.py --rungs 44m,117m --json        the table on stderr, then rows of name, baseline, ratio, goal
    python benchmarks/gpu_step.py --micro-batches 8              an update for eight times the sequences, as the paper's batches have it
    python benchmarks/gpu_step.py --device cpu --rungs tiny      does it run; its figures mean nothing
"""

import argparse
import datetime
import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

sys.path.insert(0, str(Path(__file__).parents[1]))  # runs beside the package, installed or not

import numpy as np
import torch
from bench_run import bench_run
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from train_step import Eager, Rotary

from gopher.attention import choose
from gopher.model import Block, Transformer, initialise
from gopher.optim import clip_scale, optimizer_of
from gopher.shard import DTYPES, parts, process_group, shard, sync_gradients
from gopher.size import mfu, mfu_palm, peak_flops, train_bytes
from gopher.spec import BatchSpec, ModelSpec, PrecisionSpec, RunSpec

FULL = PrecisionSpec()
MIXED = PrecisionSpec(compute="bfloat16")
ROUNDED = PrecisionSpec(parameters="bfloat16", compute="bfloat16", stochastic_rounding=True)


@dataclass(frozen=True, kw_only=True)
class Rung:
    """A shape, and the sequences of one micro-batch; `apart` where two models do not fit on one card."""

    layers: int
    heads: int
    width: int  # of a head
    sequences: int
    precision: PrecisionSpec = MIXED
    vocabulary: int = 32_000
    context: int = 2048
    eager: bool = False  # measured too; beyond 44M its score matrices fill the card
    apart: bool = False


TINY: dict[str, Any] = {"layers": 2, "heads": 2, "width": 32, "sequences": 2, "vocabulary": 512, "context": 64}
RUNGS = {
    "tiny": Rung(**TINY, precision=FULL, eager=True),
    "tiny-mixed": Rung(**TINY | {"width": 64}, eager=True),
    "tiny-rounded": Rung(**TINY, precision=ROUNDED, apart=True),
    "44m": Rung(layers=8, heads=16, width=32, sequences=32, eager=True),
    "117m": Rung(layers=12, heads=12, width=64, sequences=32),
    "417m": Rung(layers=12, heads=12, width=128, sequences=16),
    "1.4b": Rung(layers=24, heads=16, width=128, sequences=8),
    "7.1b": Rung(layers=32, heads=32, width=128, sequences=4, precision=ROUNDED, apart=True),
}
VARIANTS: dict[str, type[Block]] = {"ours": Block, "rotary": Rotary, "eager": Eager}
ROTARY_GOAL = {"44m": 0.60, "117m": 0.70, "417m": 0.80, "1.4b": 0.83, "7.1b": 0.88}
EAGER_GOAL = {"44m": 2.5}
MFU_GOAL = {"44m": 0.17, "117m": 0.28, "417m": 0.40, "1.4b": 0.45, "7.1b": 0.50}
WARM_STEPS, LIMIT_SECONDS = 3, 570.0
Step = Callable[[], None]
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class How:
    """What is measured of every rung alike."""

    device: str
    rounds: int
    compiled: bool
    micro_batches: int  # of a step: forward and backward so many times, then one update


def run_of(name: str, sequences: int) -> RunSpec:
    rung = RUNGS[name]
    model = ModelSpec(
        n_layers=rung.layers,
        n_heads=rung.heads,
        d_head=rung.width,
        d_model=rung.heads * rung.width,
        vocab_size=rung.vocabulary,
        context=rung.context,
    )
    batch, tokens = BatchSpec(sequences=sequences), 1000 * sequences * model.context
    return bench_run(model, rung=name, batch=batch, precision=rung.precision, tokens=tokens)


def step_of(run: RunSpec, block: type[Block], how: How) -> Step:
    """One optimizer step of the run's model with this kind of block, built as `gopher.shard.build` does."""
    mesh = init_device_mesh(how.device, (1,))
    with torch.device("meta"):
        model = Transformer(run.model)
        if block is not Block:
            model.blocks = nn.ModuleList(block(run.model, "none") for _ in range(run.model.n_layers))
    if block is Rotary:
        for b in model.blocks:  # what it has no use for
            del b.position, b.u, b.v
    model.to(DTYPES[run.precision.parameters])
    shard(model, run.precision, mesh, compile_blocks=how.compiled)
    model.to_empty(device=how.device)
    initialise(((p.name, p.local, p.place) for p in parts(model)), run.model, run.seed)
    adam = optimizer_of(parts(model), run)
    draws = torch.Generator().manual_seed(0)
    tokens = torch.randint(3, run.model.vocab_size, (run.batch.sequences, run.model.context + 1), generator=draws)
    inputs, targets = (x.contiguous().to(how.device) for x in (tokens[:, :-1], tokens[:, 1:]))

    def step() -> None:
        for left in reversed(range(how.micro_batches)):
            sync_gradients(model, now=left == 0)
            (model(inputs, targets) / (inputs.numel() * how.micro_batches)).backward()
        adam.step(1, 1e-5, clip_scale(adam.squared_norm(), 1.0))
        adam.zero_grad()

    return step


def seconds(step: Step, device: str) -> float:
    began = time.perf_counter()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def best_seconds(run: RunSpec, how: How) -> dict[str, float]:
    """Best seconds of a step of each variant; they take turns where they fit on the card together."""
    rung, best = RUNGS[run.rung], {}
    names = [name for name in VARIANTS if name != "eager" or rung.eager]
    for group in [[name] for name in names] if rung.apart else [names]:
        steps = {}
        for name in group:
            began = time.perf_counter()
            steps[name] = step_of(run, VARIANTS[name], how)
            for _ in range(WARM_STEPS):
                last = seconds(steps[name], how.device)
            say(f"{run.rung}: {name} ready after {time.perf_counter() - began:.0f} s, {last:.4f} s a step")
        for _ in range(how.rounds):
            for name, step in steps.items():
                best[name] = min(best.get(name, float("inf")), seconds(step, how.device))
        del steps, step
        free(how.device)
    return best


def free(device: str) -> None:
    torch.compiler.reset()  # what was compiled may hold on to its model; blocks of all kinds share one limit of compilations
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def measure(name: str, how: How) -> list[Row]:
    """The rung's rows; with half the sequences, and half again, while memory does not suffice."""
    sequences, best = RUNGS[name].sequences, None
    while best is None:
        run = run_of(name, sequences)
        try:
            best = best_seconds(run, how)
        except torch.OutOfMemoryError as failure:
            if sequences == 1:
                state = train_bytes(run, ranks=1).total / 2**30
                reason = f"does not fit: {state:.0f} GiB of parameters, gradients and moments; {one_line(failure)}"
                return not_measured(name, reason)
            say(f"{name}: {sequences} sequences do not fit; {one_line(failure)}")
            sequences //= 2
        if best is None:  # outside of the handler, which keeps the failed step's tensors alive
            free(how.device)
    return rows_of(run, best, how)


def rows_of(run: RunSpec, best: dict[str, float], how: How) -> list[Row]:
    device, tokens = how.device, how.micro_batches * run.batch.sequences * run.model.context
    rate = {name: tokens / s for name, s in best.items()}
    facts = {
        "seconds": best["ours"],
        "tokens_per_s": rate["ours"],
        "sequences": how.micro_batches * run.batch.sequences,
    }
    goals = (("rotary", ROTARY_GOAL), ("eager", EAGER_GOAL))
    rows = [
        row(f"{run.rung} against {n}", f"{rate[n]:,.0f} tok/s", rate["ours"] / rate[n], goal.get(run.rung), facts)
        for n, goal in goals
        if n in rate
    ]
    peak = peak_flops(torch.cuda.get_device_name()) if device == "cuda" else None
    if peak is not None:
        over = f"peak {peak / 1e12:.0f} TFLOP/s"
        used, palm = (f(run.model, rate["ours"], peak) for f in (mfu, mfu_palm))
        rows.append(row(f"{run.rung} MFU", over, used, MFU_GOAL.get(run.rung), facts))
        rows.append(row(f"{run.rung} MFU, 6N + 12LHQT", over, palm, None, facts))
    m, dtype = run.model, DTYPES[run.precision.compute]
    say(choose("auto", torch.device(device), dtype, (run.batch.sequences, m.n_heads, m.context, m.d_head))[1])
    return rows


def row(name: str, baseline: str | None, ratio: float | None, goal: float | None, facts: Row) -> Row:
    met = None if goal is None or ratio is None else ratio >= goal
    return {"name": name, "baseline": baseline, "ratio": ratio, "goal": goal and f">= {goal}", "met": met, **facts}


def not_measured(name: str, reason: str) -> list[Row]:
    return [row(f"{name} against rotary", None, None, ROTARY_GOAL.get(name), {"reason": f"not measured: {reason}"})]


def one_line(failure: BaseException) -> str:
    return " ".join(f"{type(failure).__name__}: {failure}".split())[:300]


# ---- rung by rung


def here(names: list[str], how: How) -> list[Row]:
    """The rows of all rungs, measured in this process."""
    import torch._dynamo

    torch._dynamo.config.recompile_limit = 32
    torch._dynamo.config.fail_on_recompile_limit_hit = True  # instead of running uncompiled in silence
    with process_group(how.device):
        return [r for name in names for r in measure(name, how)]


def apart(name: str, words: argparse.Namespace, limit_s: float) -> list[Row]:
    """The rows of one rung, measured in a process of its own that may take `limit_s` seconds."""
    if limit_s <= 0:
        return not_measured(name, f"no time left of {words.limit_s:g} s")
    compiled = "--compile" if words.compile else "--no-compile"
    command = [sys.executable, __file__, "--here", "--json", "--rungs", name, "--device", words.device, compiled]
    counts = ["--rounds", str(words.rounds), "--micro-batches", str(words.micro_batches)]
    try:
        done = subprocess.run([*command, *counts], stdout=subprocess.PIPE, text=True, timeout=limit_s)
    except subprocess.TimeoutExpired:
        return not_measured(name, f"no time left of {words.limit_s:g} s")
    if done.returncode != 0:
        return not_measured(name, f"its process ended with {done.returncode}; its error is on stderr")
    rows: list[Row] = json.loads(done.stdout)["rows"]
    return rows


def versions(device: str) -> Row:
    try:
        from triton import __version__ as triton
    except ImportError:
        triton = None
    card = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    memory = f"{torch.cuda.get_device_properties(0).total_memory / 2**30:.0f} GiB" if device == "cuda" else None
    return {
        "date": datetime.date.today().isoformat(),
        "device": card,
        "memory": memory,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": triton,
        "numpy": np.__version__,
    }


def line(r: Row) -> str:
    if r["ratio"] is None:
        return f"{r['name']:26} {r['reason']}"
    met = {None: "", True: "met", False: "missed"}[r["met"]]
    ours = f"ours {r['tokens_per_s']:11,.0f} tok/s, {r['seconds']:.4f} s for {r['sequences']} sequences"
    return f"{r['name']:26} {r['ratio']:6.3f}  {r['goal'] or '':7} {met:6}  {r['baseline']:>18}   {ours}"


def say(sentence: str, to: TextIO = sys.stderr) -> None:
    print(sentence, file=to, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rungs", default="44m,117m,417m,1.4b,7.1b", help=f"some of {', '.join(RUNGS)}")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--micro-batches", type=int, default=1, help="forward and backward passes of a step")
    parser.add_argument("--limit-s", type=float, default=LIMIT_SECONDS, help="seconds for all rungs together")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help="blocks; default: on CUDA")
    parser.add_argument("--here", action="store_true", help="all rungs in this process, in which a crash ends them all")
    parser.add_argument("--json", action="store_true")
    words = parser.parse_args()
    names = words.rungs.split(",")
    if unknown := [name for name in names if name not in RUNGS]:
        parser.error(f"no rung is called {unknown[0]}; use some of {', '.join(RUNGS)}")
    if words.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no CUDA device here; run it on one, or with --device cpu")
    words.compile = words.device == "cuda" if words.compile is None else words.compile
    if words.here:
        how = How(device=words.device, rounds=words.rounds, compiled=words.compile, micro_batches=words.micro_batches)
        rows = here(names, how)
        say("\n".join(map(line, rows)), sys.stderr if words.json else sys.stdout)
    else:
        rows, began, table = [], time.monotonic(), sys.stderr if words.json else sys.stdout
        say(", ".join(f"{k} {v}" for k, v in versions(words.device).items() if v), table)
        for name in names:
            found = apart(name, words, words.limit_s - (time.monotonic() - began))
            say("\n".join(map(line, found)), table)
            rows += found
    if words.json:
        print(json.dumps({"rows": rows, "versions": versions(words.device)}))


if __name__ == "__main__":
    main()

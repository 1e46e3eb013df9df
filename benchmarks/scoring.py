"""Scoring the options of multiple-choice items: shared contexts once and logits where they are read, against one by one.

The baseline scores every (context, option) alone and computes the logits of all positions, as a plain adapter does.

    python benchmarks/scoring.py            a table
    python benchmarks/scoring.py --json     rows of name, baseline, ratio, goal
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # runs beside the package, installed or not
os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

import numpy as np
import torch
from show import show

from gopher.cache import Reader
from gopher.model import Transformer, initialise
from gopher.score import Request, score
from gopher.spec import ModelSpec

OPTIONS, CONTEXT, OPTION_TOKENS, ITEMS, ROUNDS, GOAL = 4, 200, 8, 8, 15, 4.0
SHAPES = {
    "1.3M": ModelSpec(n_layers=6, n_heads=4, d_head=32, d_model=128, vocab_size=2048, context=512),
    "44M": ModelSpec(n_layers=8, n_heads=16, d_head=32, d_model=512, vocab_size=32_000, context=512),
}


def requests(vocabulary: int, items: int, draw: np.random.Generator) -> list[Request]:
    """`items` contexts of 200 tokens with four options of 8 tokens each."""
    out: list[Request] = []
    for _ in range(items):
        context = draw.integers(3, vocabulary, CONTEXT)
        out += [(context, draw.integers(3, vocabulary, OPTION_TOKENS)) for _ in range(OPTIONS)]
    return out


@torch.no_grad()
def one_by_one(model: Transformer, wanted: list[Request]) -> list[float]:
    """log p of each option from a forward pass of its own over all positions and the whole vocabulary."""
    out = []
    for context, option in wanted:
        whole = torch.from_numpy(np.concatenate([context, option]))
        log_probs = torch.log_softmax(model(whole[None, :-1])[0], dim=-1)
        out.append(float(log_probs[len(context) - 1 :].gather(1, whole[len(context) :, None]).sum()))
    return out


def best(ways: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Best seconds of each way; they take turns, after one round that does not count."""
    seconds = dict.fromkeys(ways, float("inf"))
    for count in range(ROUNDS + 1):
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            if count:
                seconds[name] = min(seconds[name], time.perf_counter() - began)
    return seconds


def measure(name: str, spec: ModelSpec, items: int) -> dict[str, Any]:
    model = Transformer(spec)
    initialise([(n, p.data.view(-1), 0) for n, p in model.named_parameters()], spec, seed=0)
    reader, wanted = Reader(model.requires_grad_(False)), requests(spec.vocab_size, items, np.random.default_rng(0))
    found, alone = [s.log_prob for s in score(reader, wanted)], one_by_one(model, wanted)
    assert np.allclose(found, alone, rtol=1e-4), (found[:4], alone[:4])
    seconds = best({"ours": lambda: score(reader, wanted), "alone": lambda: one_by_one(model, wanted)})
    ratio = seconds["alone"] / seconds["ours"]
    what = f"{name}, {items} item{'s' * (items > 1)}: {OPTIONS} options behind {CONTEXT} tokens"
    baseline = f"one by one {seconds['alone'] * 1000:.0f} ms"
    return {"name": what, "baseline": baseline, "ratio": ratio, "goal": f">= {GOAL:g}", "met": ratio >= GOAL}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.parse_args()
    torch.set_num_threads(1)
    rows = [measure(name, spec, items) for name, spec in SHAPES.items() for items in (1, ITEMS)]
    show(rows, "scoring, one thread", {"torch": torch.__version__})


if __name__ == "__main__":
    main()

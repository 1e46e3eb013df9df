"""What the cache and a draft save in generation, against recomputing every token, on the same model in the same run.

    python benchmarks/decode.py                                    random weights, shapes of the ladder
    python benchmarks/decode.py --target RUN_DIR --draft RUN_DIR   also speculative sampling between two trained rungs
    python benchmarks/decode.py --json

Wall seconds, one CPU thread, one row unless stated, best of the rounds. The baseline runs the whole sequence through the
same model at every token and computes logits of the last position alone, which is kinder than most uncached loops.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # runs beside the package, installed or not
os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

import torch

from gopher.cache import Reader
from gopher.checkpoint import load_for_inference
from gopher.draws import stream_key
from gopher.generate import generate, prefill
from gopher.model import Transformer, initialise
from gopher.sampling import Sampling
from gopher.spec import ModelSpec
from gopher.speculative import speculate

GOAL = 8.0
CONTEXT = 256
SHAPES = {
    "1.3M": ModelSpec(n_layers=6, n_heads=4, d_head=32, d_model=128, vocab_size=2048, context=512),
    "44M": ModelSpec(n_layers=8, n_heads=16, d_head=32, d_model=512, vocab_size=32_000, context=512),
}


def random_model(spec: ModelSpec) -> Transformer:
    model = Transformer(spec)
    initialise([(name, p.data.view(-1), 0) for name, p in model.named_parameters()], spec, seed=0)
    return model.requires_grad_(False).eval()


def prompts(spec: ModelSpec, rows: int, length: int) -> list[list[int]]:
    draws = torch.Generator().manual_seed(stream_key(0, "prompts") % 2**31)
    return torch.randint(3, spec.vocab_size, (rows, length), generator=draws).tolist()


def best(work: Callable[[], object], rounds: int) -> float:
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


@torch.no_grad()
def uncached(model: Transformer, tokens: list[list[int]], count: int) -> list[list[int]]:
    """Greedy tokens, the whole sequence read again for each one."""
    whole = torch.tensor(tokens)
    for _ in range(count):
        logits = model.hidden(whole)[:, -1] @ model.embedding.t()
        whole = torch.cat([whole, logits.argmax(-1, keepdim=True)], dim=1)
    return whole[:, len(tokens[0]) :].tolist()


def step_seconds(reader: Reader, tokens: list[list[int]], count: int) -> float:
    """Seconds a greedy token with the prompt already cached."""
    cache, last = prefill(reader, tokens, count)
    began = time.perf_counter()
    for _ in range(count):
        last = reader.logits(reader.read(last[:, None], cache)[:, -1]).argmax(-1)
    return (time.perf_counter() - began) / count


def cached_rows(name: str, spec: ModelSpec, rounds: int) -> list[dict[str, object]]:
    model = random_model(spec)
    reader, rows = Reader(model), []
    for batch in (1, 8):
        tokens = prompts(spec, batch, CONTEXT)
        assert generate(reader, tokens, max_new_tokens=3) == uncached(model, tokens, 3)
        slow = best(lambda t=tokens: uncached(model, t, 3), rounds) / 3  # type: ignore[misc]
        fast = min(step_seconds(reader, tokens, 24) for _ in range(rounds))
        call = best(lambda t=tokens: generate(reader, t, max_new_tokens=64), rounds)  # type: ignore[misc]
        title = f"{name}, {batch} row{'s' * (batch > 1)}"
        rows.append(row(f"{title}: a token at context {CONTEXT}", "uncached", fast, slow, GOAL))
        rows.append(row(f"{title}: prompt of {CONTEXT} and 64 new tokens", "uncached", call, 64 * slow, None))
    return rows


def speculative_rows(target: str, draft: str, rounds: int) -> list[dict[str, object]]:
    """Tokens a row and pass of the target behind four prompts of its own, and wall time against the target alone."""
    readers = [Reader(load_for_inference(folder)) for folder in (target, draft)]
    spec, rows = readers[0].model.spec, []
    start, count = Sampling(seed=2), spec.context // 2
    tokens = [[2, *new] for new in generate(readers[0], [[2]] * 4, max_new_tokens=spec.context // 4, sampling=start)]
    for sampling, name in ((Sampling(temperature=0), "greedy"), (Sampling(seed=1), "temperature 1")):
        plain = best(lambda s=sampling: generate(readers[0], tokens, max_new_tokens=count, sampling=s), rounds)  # type: ignore[misc]
        for ahead in (2, 4):
            arguments = {"max_new_tokens": count, "sampling": sampling, "ahead": ahead}
            found = speculate(*readers, tokens, **arguments)  # type: ignore[arg-type]
            seconds = best(lambda a=arguments: speculate(*readers, tokens, **a), rounds)  # type: ignore[misc]
            one = row(f"speculative, {name}, {ahead} ahead", "the target alone", seconds, plain, None)
            share = found.accepted / max(1, found.proposed)
            per_pass = len(tokens) * count / max(1, len(tokens) * count - found.accepted)
            rows.append(one | {"accepted_share": round(share, 3), "tokens_per_pass": round(per_pass, 2)})
    return rows


def row(name: str, baseline: str, ours: float, theirs: float, goal: float | None) -> dict[str, object]:
    ratio = theirs / ours
    met = None if goal is None else ratio >= goal
    numbers = {"ms": round(1e3 * ours, 3), "baseline_ms": round(1e3 * theirs, 3), "ratio": round(ratio, 2)}
    return {"name": name, "baseline": baseline, **numbers, "goal": goal, "met": met}


def show(rows: list[dict[str, object]]) -> None:
    print(f"{'what':48} {'against':18} {'ms':>9} {'baseline':>10} {'ratio':>7} {'goal':>6}")
    for r in rows:
        goal = f"{r['goal']}x" if r["goal"] else ""
        note = (
            f"   {r['tokens_per_pass']} tokens a pass, {r['accepted_share']} accepted" if "tokens_per_pass" in r else ""
        )
        print(f"{r['name']:48} {r['baseline']:18} {r['ms']:>9} {r['baseline_ms']:>10} {r['ratio']:>6}x {goal:>6}{note}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--target", help="run folder of the model that is sampled")
    parser.add_argument("--draft", help="run folder of a smaller model with the same tokenizer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = [r for name, spec in SHAPES.items() for r in cached_rows(name, spec, args.rounds)]
    if args.target and args.draft:
        rows += speculative_rows(args.target, args.draft, args.rounds)
    print(json.dumps({"rows": rows, "torch": torch.__version__}, indent=2)) if args.json else show(rows)


if __name__ == "__main__":
    main()

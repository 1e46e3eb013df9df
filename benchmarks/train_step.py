"""A training step on one core: the paper's model against rotary attention of the same shape, eager relative attention, and peers.

Forward, backward and optimizer step on the same number of random tokens. The variants take turns, the best of the rounds
counts, ratios are tokens per second of ours over theirs in the same run. Peers are measured where they can be imported:
`pip install transformers` (Llama with a gated MLP of 8/3 d, so the same number of weights), litgpt likewise.

    python benchmarks/train_step.py                     a table
    python benchmarks/train_step.py --json              rows of name, baseline, ratio, goal
    python benchmarks/train_step.py --lengths 128,512   --rounds 5
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # runs beside the package, installed or not
os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count()))

import torch
import torch.nn.functional as F
from bench_run import bench_run
from show import show
from torch import nn

from gopher.chunked import causal_mask
from gopher.model import Block, Transformer, initialise, summed_loss
from gopher.optim import Adam, Part
from gopher.spec import ModelSpec

TOKENS = 2048  # per step, in sequences of the length that is measured
LAYERS, HEADS, D_HEAD, VOCABULARY = 6, 8, 32, 8192
GOALS = {"rotary": {128: 0.90, 512: 0.90, 2048: 0.80}, "eager": {128: 1.3, 512: 1.3, 2048: 1.6}}
PEER_GOAL, THREADS_GOAL = 0.85, 1.0
Step = Callable[[], Any]


def shape(length: int) -> ModelSpec:
    return ModelSpec(
        n_layers=LAYERS,
        n_heads=HEADS,
        d_head=D_HEAD,
        d_model=HEADS * D_HEAD,
        vocab_size=VOCABULARY,
        context=length,
    )


# ---- the same model with other attention


class Rotary(Block):
    """Rotary positions (Su et al. 2021) on torch's fused attention: what most models do today."""

    def compute(self, x: torch.Tensor, table: torch.Tensor, attention: str) -> torch.Tensor:
        q, k, v = self.project(x)
        # a head's rates are every H-th of the table's
        sine, cosine = (half[:, :: q.size(1)].contiguous() for half in table.chunk(2, dim=1))
        attended = F.scaled_dot_product_attention(rotated(q, sine, cosine), rotated(k, sine, cosine), v, is_causal=True)
        return self.finish(x, attended)


def rotated(x: torch.Tensor, sine: torch.Tensor, cosine: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)


class Eager(Block):
    """Relative attention as the public Transformer-XL codes write it: whole score matrices, shifted by padding."""

    def compute(self, x: torch.Tensor, table: torch.Tensor, attention: str) -> torch.Tensor:
        q, k, v = self.project(x)
        length = x.size(1)
        r = self.distances(table).flip(1)
        content = (q + self.u[:, None]) @ k.transpose(2, 3)
        position = F.pad((q + self.v[:, None]) @ r.transpose(1, 2), (1, 0))
        position = position.view(*position.shape[:2], length + 1, length)[:, :, 1:].reshape(content.shape)
        scores = (content + position) * self.d_head**-0.5 + causal_mask(length, length, x.dtype, x.device)
        return self.finish(x, torch.softmax(scores, dim=-1) @ v)


def transformer(spec: ModelSpec, block: type[Block] = Block) -> Transformer:
    model = Transformer(spec)
    if block is not Block:
        model.blocks = nn.ModuleList(block(spec, "none") for _ in range(spec.n_layers))
    with torch.no_grad():
        initialise(((name, p.data.view(-1), 0) for name, p in model.named_parameters()), spec, 0)
    return model


# ---- steps


def ours(spec: ModelSpec) -> Step:
    model = transformer(spec)
    parts = [Part(name=n, parameter=p, local=p.detach(), place=0) for n, p in model.named_parameters()]
    adam = Adam(parts, bench_run(spec))
    inputs, targets = batch(spec)

    def step() -> None:
        (model(inputs, targets) / TOKENS).backward()
        adam.step(1, 1e-4, 1.0)
        adam.zero_grad()

    return step


def with_torch(model: nn.Module, loss: Callable[[], torch.Tensor]) -> Step:
    used = [p for p in model.parameters() if p.requires_grad]
    adam = torch.optim.AdamW(used, lr=1e-4, weight_decay=0.0, fused=True)

    def step() -> None:
        loss().backward()
        adam.step()
        adam.zero_grad(set_to_none=True)

    return step


def variant(spec: ModelSpec, block: type[Block]) -> Step:
    model = transformer(spec, block)
    if block is Rotary:  # what it has no use for
        for b in model.blocks:
            b.position.weight.requires_grad_(False)  # type: ignore[union-attr]
            b.u.requires_grad_(False)  # type: ignore[union-attr]
            b.v.requires_grad_(False)  # type: ignore[union-attr]
    inputs, targets = batch(spec)
    return with_torch(model, lambda: model(inputs, targets) / TOKENS)


def llama(spec: ModelSpec) -> Step | None:
    """Hugging Face's Llama, or None where transformers is not installed."""
    if find_spec("transformers") is None:
        return None
    from transformers import LlamaConfig, LlamaForCausalLM  # type: ignore[import-not-found]

    config = LlamaConfig(
        vocab_size=spec.vocab_size,
        hidden_size=spec.d_model,
        intermediate_size=8 * spec.d_model // 3 // 8 * 8,
        num_hidden_layers=spec.n_layers,
        num_attention_heads=spec.n_heads,
        max_position_embeddings=spec.context,
        tie_word_embeddings=True,
        attn_implementation="sdpa",
        use_cache=False,
    )
    model = LlamaForCausalLM(config)
    inputs, targets = batch(spec)
    body, head = model.model, model.lm_head.weight
    # our loss, which is the faster one here: the blocks are compared, not the cross-entropies
    return with_torch(
        model, lambda: summed_loss(body(inputs).last_hidden_state.flatten(0, 1), head, targets.flatten()) / TOKENS
    )


def litgpt(spec: ModelSpec) -> Step | None:
    """litgpt's GPT (Pythia's blocks: rotary, GELU), or None where it is not installed."""
    if find_spec("litgpt") is None:
        return None
    from litgpt.config import Config  # type: ignore[import-not-found]
    from litgpt.model import GPT  # type: ignore[import-not-found]

    config = Config(
        n_layer=spec.n_layers,
        n_head=spec.n_heads,
        n_embd=spec.d_model,
        vocab_size=spec.vocab_size,
        padded_vocab_size=spec.vocab_size,
        block_size=spec.context,
        rotary_percentage=1.0,
        bias=False,
        norm_class_name="RMSNorm",
    )
    model = GPT(config)
    inputs, targets = batch(spec)
    return with_torch(model, lambda: F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten()))


def batch(spec: ModelSpec) -> tuple[torch.Tensor, torch.Tensor]:
    draws = torch.Generator().manual_seed(0)
    tokens = torch.randint(3, spec.vocab_size, (TOKENS // spec.context, spec.context + 1), generator=draws)
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


# ---- measuring


def seconds(steps: dict[str, Step], rounds: int) -> dict[str, float]:
    """Best seconds of each step; they take turns, after one round that does not count."""
    best = dict.fromkeys(steps, float("inf"))
    for count in range(rounds + 1):
        for name, step in steps.items():
            began = time.perf_counter()
            step()
            if count:
                best[name] = min(best[name], time.perf_counter() - began)
    return best


def measure(lengths: list[int], rounds: int) -> list[dict[str, Any]]:
    rows = []
    for length in lengths:
        spec = shape(length)
        torch.set_num_threads(1)
        found: dict[str, Step | None] = {
            "ours": ours(spec),
            "rotary": variant(spec, Rotary),
            "eager": variant(spec, Eager),
        }
        found |= {"HF Llama": llama(spec), "litgpt": litgpt(spec)}
        best = seconds({name: step for name, step in found.items() if step is not None}, rounds)
        for name, goals in GOALS.items():
            rows.append(row(f"T={length}, against {name}", name, best, goals.get(length)))
        peers = {name: best.get(name) for name in ("HF Llama", "litgpt")}
        for name, measured in peers.items():
            better = measured is not None and measured == min(p for p in peers.values() if p is not None)
            rows.append(row(f"T={length}, against {name}", name, best, PEER_GOAL if better else None))
        rows.append(threads(spec, rounds))
    return rows


def row(name: str, baseline: str, best: dict[str, float], goal: float | None) -> dict[str, Any]:
    if baseline not in best:
        return {"name": name, "baseline": "not installed", "ratio": None, "goal": None, "met": None}
    ratio = best[baseline] / best["ours"]
    said = f"{TOKENS / best[baseline]:,.0f} tok/s"
    return {
        "name": name,
        "baseline": said,
        "ratio": ratio,
        "goal": goal and f">= {goal}",
        "met": goal and ratio >= goal,
    }


def threads(spec: ModelSpec, rounds: int) -> dict[str, Any]:
    """Two threads against one, the same step in turns."""

    def on(count: int) -> Step:
        step = ours(spec)

        def run() -> None:
            torch.set_num_threads(count)
            step()

        return run

    best = seconds({"one": on(1), "two": on(2)}, rounds)
    torch.set_num_threads(1)
    ratio = best["one"] / best["two"]
    said = f"{TOKENS / best['one']:,.0f} tok/s"
    name = f"T={spec.context}, two threads against one"
    return {"name": name, "baseline": said, "ratio": ratio, "goal": f">= {THREADS_GOAL}", "met": ratio >= THREADS_GOAL}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--lengths", default="128,512,2048")
    parser.add_argument("--rounds", type=int, default=5)
    words = parser.parse_args()
    rows = measure([int(n) for n in words.lengths.split(",")], words.rounds)
    title = f"training steps of {TOKENS} tokens, {LAYERS} layers, d_model {HEADS * D_HEAD}, one thread"
    show(rows, title, {"torch": torch.__version__})


if __name__ == "__main__":
    main()

"""The loss on held-out text: every rank reads its share of each subset."""

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist

from gopher.model import Transformer
from gopher.shard import on_device, release
from gopher.spec import Placement, RunSpec
from gopher.stability import Trouble


@torch.no_grad()
def evaluate(
    model: Transformer, run: RunSpec, placement: Placement, validation: Any, share: int, shares: int
) -> dict[str, float | None]:
    """val/* of the current parameters: nats per token and bits per byte, by subset and weighted by the mixture."""
    names = list(run.data.weights)
    nats = torch.stack([summed_nats(model, validation[name], placement, share, shares) for name in names])
    release(model)
    if dist.get_world_size() > 1:
        dist.all_reduce(nats)
        nats /= placement.tensor_parallel
    loss, bpb = 0.0, 0.0
    by_subset: dict[str, float | None] = {}
    for name, subset_nats in zip(names, nats.tolist(), strict=True):
        subset, weight = validation[name], run.data.weights[name]
        by_subset[f"val/loss_{name}"] = per_token = subset_nats / subset.n_tokens
        by_subset[f"val/bpb_{name}"] = per_byte = subset_nats / math.log(2) / subset.n_bytes
        loss += weight * per_token
        bpb += weight * per_byte
    return {"val/loss": loss, "val/bpb": bpb} | by_subset


def untrusted(metrics: Mapping[str, float | None]) -> Trouble | None:
    """Why an evaluation cannot be trusted: the update before it can spoil the parameters although its own loss was a number."""
    bad = [f"{name} {value}" for name, value in metrics.items() if value is None or not math.isfinite(value)]
    return Trouble(sentence=bad[0]) if bad else None


def summed_nats(model: Transformer, subset: Any, placement: Placement, share: int, shares: int) -> torch.Tensor:
    """float64 nats of this rank's share of a subset; ranks with less to do repeat a batch that counts for nothing."""
    size = placement.micro_batch_sequences
    starts = list(range(0, len(subset.inputs), size))
    total = torch.zeros((), dtype=torch.float64, device=placement.device)
    # FSDP needs the same number of forwards on all ranks
    for i in range(share, -(-len(starts) // shares) * shares, shares):
        rows = slice(starts[i % len(starts)], starts[i % len(starts)] + size)
        inputs, targets = (on_device(x[rows], placement) for x in (subset.inputs, subset.targets))
        nats = model(inputs, targets)
        total += nats if i < len(starts) else 0.0
    return total

"""Proves: a validation is the mean over every held-out token, weighted by the mixture, and any number in it that is none is trouble."""

import math
from pathlib import Path

import pytest
import torch

from gopher.checkpoint import load_for_inference
from gopher.data import TokenStore
from gopher.record import RunFolder
from gopher.spec import DataSpec
from gopher.validation import untrusted


def test_it_is_the_mean_over_all_held_out_tokens(finished: RunFolder, shards: tuple[DataSpec, Path]) -> None:
    run, model = finished.spec(), load_for_inference(finished.path)
    sets = TokenStore.open(shards[1]).validation(run.model.context, run.evaluation.tokens_per_subset)
    loss = bits = 0.0
    for name, held_out in sets.items():
        rows = zip(torch.from_numpy(held_out.inputs), torch.from_numpy(held_out.targets), strict=True)
        with torch.no_grad():
            nats = sum(float(model(inputs[None], targets[None])) for inputs, targets in rows)
        weight = run.data.weights[name]
        loss += weight * nats / held_out.n_tokens
        bits += weight * nats / math.log(2) / held_out.n_bytes
        assert finished.last(f"final/val_loss_{name}") == pytest.approx(nats / held_out.n_tokens, rel=1e-6)
    assert finished.last("final/val_loss") == pytest.approx(loss, rel=1e-6)
    assert finished.last("final/val_bpb") == pytest.approx(bits, rel=1e-6)


@pytest.mark.parametrize("name", ["val/loss", "val/bpb", "val/loss_prose"])
@pytest.mark.parametrize("value", [math.nan, math.inf, None])
def test_one_bad_number_is_enough(name: str, value: float | None) -> None:
    good: dict[str, float | None] = {"val/loss": 3.0, "val/bpb": 1.5, "val/loss_prose": 3.0}
    trouble = untrusted(good | {name: value})
    assert untrusted(good) is None
    assert trouble is not None and trouble.sentence == f"{name} {value}" and not trouble.spike

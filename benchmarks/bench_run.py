"""What a benchmark needs of a run around its model; its text, tokenizer and rates are never looked at."""

from typing import Any

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


def bench_run(model: ModelSpec, **changes: Any) -> RunSpec:
    usual = {
        "rung": "bench",
        "seed": 0,
        "data": DataSpec(kind="local", path="-", subsets=(SubsetSpec(name="x", weight=1.0, origin="x"),)),
        "tokenizer": TokenizerSpec(vocab_size=model.vocab_size),
        "optim": OptimSpec(lr=1e-4, warmup_steps=1),
        "batch": BatchSpec(sequences=1),
        "precision": PrecisionSpec(),
        "evaluation": EvalSpec(),
        "tokens": 1000 * model.context,
        "tokenizer_key": "x",
        "data_key": "x",
    }
    return RunSpec(model=model, **usual | changes)

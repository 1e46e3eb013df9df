"""From config to runs: the paper's ladder is exact, axes multiply, typos are named, keys depend on content alone, 10^4 runs are quick to make."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from studies import TINY, write_text

from gopher.errors import UsageError
from gopher.size import params_non_embedding, params_total
from sweeps.compose import compose, hydra_session
from sweeps.settings import Settings
from sweeps.study import Study, load_study, study_of

PAPER = {  # Rae et al. 2021, Table 1: parameters (reconstructed), maximum learning rate, batch tokens
    "44m": (43_663_872, 6e-4, 262_144),
    "117m": (116_626_176, 6e-4, 262_144),
    "417m": (417_277_440, 2e-4, 262_144),
    "1_4b": (1_374_357_504, 2e-4, 262_144),
    "7_1b": (7_110_922_240, 1.2e-4, 2_097_152),
    "280b": (279_702_421_504, 4e-5, 3_145_728),
}


@pytest.fixture(autouse=True)
def session():  # type: ignore[no-untyped-def]
    with hydra_session():
        yield


def study(root: Path, *overrides: str) -> Study:
    return load_study(compose, [*overrides, f"output_root={root}"])


def test_the_paper_ladder(tmp_path: Path) -> None:
    runs = study(tmp_path, "sweep=gopher").runs
    found = {r.spec.rung: (params_total(r.spec.model), r.spec.optim.lr, r.spec.batch_tokens(0)) for r in runs}
    assert found == PAPER
    assert all(r.spec.model.context == 2048 and r.spec.tokens == 300_000_000_000 for r in runs)
    clipped = {r.spec.rung: r.spec.optim.clip_norm for r in runs}
    assert clipped == {rung: 0.25 if rung in ("7_1b", "280b") else 1.0 for rung in PAPER}
    assert runs[-1].spec.batch_tokens(runs[-1].spec.steps - 1) == 6_291_456
    assert runs[-1].placement.tensor_parallel == 8
    shapes = {r.spec.rung: (r.spec.model.n_layers, r.spec.model.n_heads, r.spec.model.d_head) for r in runs}
    assert shapes == {
        "44m": (8, 16, 32),
        "117m": (12, 12, 64),
        "417m": (12, 12, 128),
        "1_4b": (24, 16, 128),
        "7_1b": (32, 32, 128),
        "280b": (80, 128, 128),
    }


def test_the_papers_recipe(tmp_path: Path) -> None:
    """Rae et al. 2021, section 3: schedule, precision by size, batch doubled midway at 280B alone; one thread a worker."""
    for run in study(tmp_path, "sweep=gopher").runs:
        spec, large = run.spec, run.spec.rung in ("7_1b", "280b")
        assert (spec.optim.warmup_steps, spec.optim.warmup_start_lr, spec.optim.final_lr_fraction) == (1500, 1e-7, 0.1)
        assert (spec.optim.kind, spec.precision.compute) == ("adam", "bfloat16")
        assert spec.precision.parameters == ("bfloat16" if large else "float32")
        assert spec.precision.stochastic_rounding == large
        assert spec.optim.clip_norm == (0.25 if large else 1.0)
        assert spec.batch.double_at_tokens == (150_000_000_000 if spec.rung == "280b" else None)
        assert run.placement.threads_per_worker == 1


def test_what_workers_cannot_share_out_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="batch.sequences is 8 and placement.workers 3; use a number of workers"):
        study(tmp_path, "sweep=demo", "placement.workers=3")
    with pytest.raises(UsageError, match="tensor_parallel is 8 but 54k has . heads; use a number that divides them"):
        study(tmp_path, "sweep=demo", "placement.workers=8", "placement.tensor_parallel=8")


def test_the_demo_ladder_has_its_shape(tmp_path: Path) -> None:
    demo = study(tmp_path, "sweep=demo")
    sizes = {r.spec.rung: params_non_embedding(r.spec.model) for r in demo.runs}
    assert len(sizes) >= 5 and list(sizes.values()) == sorted(sizes.values())
    assert min(sizes.values()) >= 50_000 and max(sizes.values()) <= 2_100_000
    seeds = [[r.spec.seed for r in demo.runs if r.spec.rung == rung] for rung in demo.rungs]
    assert sum(len(s) >= 2 for s in seeds) >= 2
    assert len({(r.spec.tokens, r.spec.data_key, r.spec.tokenizer_key) for r in demo.runs}) == 1


def test_axes_multiply_and_seeds_come_from_the_command_line(tmp_path: Path) -> None:
    runs = study(
        tmp_path, "sweep=demo", "rungs=[268k,601k]", "axes.seed=[1,2]", "axes.optim.lr=[0.001,0.002,0.004]"
    ).runs
    assert len(runs) == 2 * 2 * 3 and len({r.spec.key for r in runs}) == 12
    assert {(r.spec.rung, r.spec.seed, r.spec.optim.lr) for r in runs} == {
        (rung, seed, lr) for rung in ("268k", "601k") for seed in (1, 2) for lr in (0.001, 0.002, 0.004)
    }


def test_group_axes_and_interpolated_axes_are_composed(tmp_path: Path) -> None:
    runs = study(
        tmp_path,
        "sweep=demo",
        "rungs=[268k]",
        "axes.precision=[float32,mixed]",
        "axes.tokenizer.vocab_size=[1024,2048]",
    ).runs
    assert {(r.spec.precision.compute, r.spec.model.vocab_size, r.spec.tokenizer.vocab_size) for r in runs} == {
        (c, v, v) for c in ("float32", "bfloat16") for v in (1024, 2048)
    }


@pytest.mark.parametrize(
    ("axis", "read"),
    [
        ("axes.optim.lr=[0.001,0.002]", lambda s: s.optim.lr),
        ("axes.tokens=[400000,500000]", lambda s: s.tokens),
        ("axes.data.weights.code=[0.1,0.4]", lambda s: s.data.weights["code"]),
        ("axes.data.weights=[{code: 0.1},{code: 0.4}]", lambda s: s.data.weights["code"]),
        ("axes.model.n_layers=[2,3]", lambda s: s.model.n_layers),
        ("axes.precision=[float32,bfloat16_sr]", lambda s: s.precision.parameters),
        ("axes.precision.gradient_reduce=[float32,float64]", lambda s: s.precision.gradient_reduce),
        ("axes.batch.sequences=[8,16]", lambda s: s.batch.sequences),
        ("axes.evaluation.points=[2,3]", lambda s: s.evaluation.points),
        ("axes.tokenizer.preset=[lossless,gopher]", lambda s: s.tokenizer.preset),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_anything_that_a_run_computes_can_be_an_axis(tmp_path: Path, axis: str, read) -> None:  # type: ignore[no-untyped-def]
    runs = study(tmp_path, "sweep=demo", "rungs=[54k]", "extra_seeds={54k: []}", axis).runs
    assert len(runs) == 2 and len({r.spec.key for r in runs}) == 2 and len({read(r.spec) for r in runs}) == 2


def test_mixtures_of_local_folders_are_an_axis(tmp_path: Path) -> None:
    text = write_text(tmp_path / "text")
    words = ["sweep=demo", "rungs=[54k]", "extra_seeds={54k: []}", "data=local", f"data.path={text}", *TINY]
    runs = study(tmp_path, *words, "axes.data.weights=[{prose: 1, shout: 1},{prose: 3, shout: 1}]").runs
    assert [r.spec.data.weights["prose"] for r in runs] == [0.5, 0.75]


def test_python_and_the_command_line_make_the_same_runs(tmp_path: Path) -> None:
    words = ["sweep=demo", "axes.optim.lr=[0.001,0.002]", "rungs=[54k,84k]", f"output_root={tmp_path}"]
    done = subprocess.run(
        [sys.executable, "-m", "sweeps.cli", "plan", *words, "format=json"], capture_output=True, text=True, check=True
    )
    assert [r["key"] for r in json.loads(done.stdout)["runs"]] == [r.spec.key for r in study_of(words).runs]


def test_sweeps_share_a_run_whatever_they_call_it(tmp_path: Path) -> None:
    one = study(tmp_path, "sweep=demo", "rungs=[54k,84k]", "name=first").runs
    two = study(tmp_path / "elsewhere", "sweep=demo", "rungs=[84k,121k]", "name=second", "axes.seed=[1,0]").runs
    shared = {r.spec.key for r in one} & {r.spec.key for r in two}
    assert {r.spec.seed for r in one if r.spec.key in shared} == {0, 1}
    assert {r.spec.rung for r in one if r.spec.key in shared} == {"84k"}


def test_equal_runs_are_one_run(tmp_path: Path) -> None:
    assert len(study(tmp_path, "sweep=demo", "rungs=[268k]", "axes.seed=[1,1,1]").runs) == 1


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["rungs=[54kk]"], "rungs[0] is '54kk', which is no model config; did you mean '54k'"),
        (["rungs=[]"], "give a list such as rungs=[54k,121k]"),
        (["model=44m"], "write rungs=[44m]"),
        (["axes.sed=[1]"], "axes.sed is no key of a run; did you mean 'seed'"),
        (["+foo=1"], "unknown key 'foo'"),
        (["++optim.lrr=1"], "unknown key 'optim.lrr'; did you mean 'optim.lr'"),
        (["axes.optim.lrr=[1]"], "axes.optim.lrr is no key of a run; did you mean 'optim.lr'"),
        (["axes.data.weights.spech=[1]"], "did you mean 'data.weights.speeches'"),
        (["axes.precision=[float23]"], "did you mean 'float32'"),
        (["axes.model=[54k]"], "write rungs=[54k]"),
        (["axes.optim.lr=[inf]"], "optim.lr is inf; give a positive learning rate"),
        (["axes.seed=[1.5]"], "run.seed is 1.5"),
        (["extra_seeds={54k: 1}"], "extra_seeds.54k is 1; give a list"),
        (["extra_seeds={99k: [1]}"], "extra_seeds.99k is no rung"),
        (["rung=x"], "write rungs=[x]"),
        (["seed=7"], "seed=7 would do nothing, because the sweep has axes.seed=[0]; write axes.seed=[7]"),
        (["optim.lr=0.1", "axes.optim.lr=[0.2]"], "optim.lr=0.1 would do nothing"),
        (["++seed=true"], "write axes.seed=[True]"),
        (["data.weights.code=x"], "data.weights.code is 'x'; give a positive number"),
        (["axes.seed=3"], "give a list of values"),
        (["axes.placement.workers=[1,2]"], "does not change what a run computes"),
        (["optim.lr=abc"], "run.optim.lr is 'abc'; give a value of type float"),
        (["name=../x"], "name is '../x'"),
        (["tokens=10"], "less than one batch"),
        (["model.d_head=15"], "every Gopher rung has them equal"),
        (["model.n_heads=5"], "so set model.n_heads=4 and model.d_head=8"),
        (["optim.warmup_start_lr=1"], "optim.warmup_start_lr is 1 and optim.lr"),
        (["axes.optim.lr=[1e300]"], "optim.lr is 1e+300; give a positive learning rate that float32 can hold"),
        (["axes.seed=[18446744073709551616]"], "give an integer from 0 to 2^64 - 1"),
        (["placement.threads_per_worker=1e30"], "give the cores of one worker, at most 4096"),
        (["placement.micro_batch_sequences=1e10"], "set placement.micro_batch_sequences=8"),
        (["data.weights.spech=1"], "data.weights.spech is no subset; did you mean 'speeches'"),
        (["data=local", "data.path=/nowhere"], "/nowhere, which is no folder"),
        (["data=local"], "data.path"),
    ],
)
def test_mistakes_name_the_value_and_the_cure(tmp_path: Path, overrides: list[str], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        study(tmp_path, "sweep=demo", *overrides)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_keys_do_not_depend_on_places_or_placement(tmp_path: Path) -> None:
    first, second = write_text(tmp_path / "a" / "text"), write_text(tmp_path / "b" / "text")
    words = ["sweep=demo", "rungs=[54k]", "data=local", *TINY]
    one = study(tmp_path / "x", *words, f"data.path={first}")
    two = study(
        tmp_path / "y", *words, f"data.path={second}", "placement.workers=2", "placement.checkpoint_every_steps=7"
    )
    assert [r.spec.key for r in one.runs] == [r.spec.key for r in two.runs]


def test_changed_text_changes_the_keys(tmp_path: Path) -> None:
    text = write_text(tmp_path / "text")
    words = ["sweep=demo", "rungs=[54k]", "data=local", f"data.path={text}", *TINY]
    before = study(tmp_path, *words).runs[0].spec.key
    (text / "prose" / "new.txt").write_text("one more document of some length, to be trained on")
    assert study(tmp_path, *words).runs[0].spec.key != before


def test_local_subsets_are_the_folders(tmp_path: Path) -> None:
    text = write_text(tmp_path / "text")
    words = ["sweep=demo", "rungs=[54k]", "data=local", f"data.path={text}", *TINY]
    assert set(study(tmp_path, *words).runs[0].spec.data.weights) == {"prose", "shout"}
    weighted = study(tmp_path, *words, "data.weights.prose=3", "data.weights.shout=1").runs[0].spec.data.weights
    assert weighted == {"prose": 0.75, "shout": 0.25}
    assert set(study(tmp_path, *words, "data.subsets=[shout]").runs[0].spec.data.weights) == {"shout"}


def test_relative_folders_are_those_of_the_caller_on_every_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_text(tmp_path / "text")
    monkeypatch.chdir(tmp_path)
    words = ["sweep=demo", "rungs=[54k]", "data=local", "data.path=text", *TINY]
    assert study(tmp_path, *words).runs[0].spec.data.path == str(tmp_path / "text")
    assert Settings(output_root="out", name="demo", tasks_path="mine").exam.tasks_path == str(tmp_path / "mine")


def test_a_large_sweep_is_composed_per_rung_and_not_per_run(tmp_path: Path) -> None:
    """2,000 runs of which no two are alike; one composition a run would take minutes and hit the suite's time limit."""
    runs = study(tmp_path, "sweep=demo", f"axes.seed={list(range(200))}", "axes.optim.lr=[0.001,0.002]").runs
    assert len({r.spec.key for r in runs}) == len(runs) == 2_000

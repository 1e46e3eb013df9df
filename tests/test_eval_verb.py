"""`gopher eval` on one checkpoint: the interface in JSON, nothing scored twice, what is missing named, words that are wrong told.
On Ray: shards go to whoever is free, a killed actor loses one shard, numbers equal those of one process."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from eval_tasks import CHOICE, write_tasks
from test_evals import long_bundle

from gopher.errors import UsageError
from gopher.evals.bundle import write_bundle
from gopher.evals.checkpoints import checkpoints_of
from gopher.evals.store import Store, score_missing
from gopher.evals.units import Part, Unit, units_of
from gopher.record import RunFolder
from sweeps.backends.ray_evals import next_unit
from sweeps.compose import compose, hydra_session
from sweeps.settings import ClusterSettings, settings_of
from sweeps.study import load_study
from sweeps.verbs import eval as verb
from sweeps.verbs.compress import sweep_folders

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    folder = write_tasks(tmp_path_factory.mktemp("tasks"), tasks={"colours": CHOICE})
    lost = json.loads((folder / "colours.yaml").read_text()) | {"task": "lost"}
    lost["dataset_kwargs"] = {"data_files": {"test": str(folder / "gone.jsonl")}}
    (folder / "lost.yaml").write_text(json.dumps(lost))
    return folder


def told(words: list[str], capsys: pytest.CaptureFixture[str]) -> Any:
    with hydra_session():
        assert verb.run(compose, words) == 0
    return json.loads(capsys.readouterr().out)


def test_one_checkpoint_in_json(own_run: Path, tasks: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [f"checkpoint={own_run}", "tasks=[colours,lost]", f"tasks_path={tasks}", "format=json"]
    first = told(words, capsys)
    assert first["requests_scored"] == 2 * 60  # the checkpoint and the untrained model
    assert {r["step"] for r in first["results"]} == {0, 20}
    assert {"run", "step", "task", "metric", "value", "stderr", "n"} <= set(first["results"][0])
    assert first["results"][0]["run"] == own_run.name and first["results"][0]["n"] == 20
    assert [s["task"] for s in first["skipped"]] == ["lost"] and "gone.jsonl" in first["skipped"][0]["reason"]
    again = told(words, capsys)
    assert again["requests_scored"] == 0 and again["results"] == first["results"]
    early = told([*words, "evals.steps=[10]", "evals.floor=false"], capsys)
    assert {r["step"] for r in early["results"]} == {10} and early["requests_scored"] == 60


def test_runs_that_share_a_name_are_all_scored(tmp_path: Path) -> None:
    """They differ in precision alone, which people do not read in a run's name."""
    words = [
        "sweep=demo",
        "rungs=[54k,84k]",
        "extra_seeds={}",
        "axes={precision: [float32,bfloat16_sr]}",
        f"output_root={tmp_path}",
    ]
    with hydra_session():
        settings, study = settings_of(compose(words).tree), load_study(compose, words)
        folders = [settings.run_dir(r.spec.key) for r in study.runs if r.spec.rung == "54k"]
        for folder in folders:
            (folder / "checkpoints" / f"{20:010d}").mkdir(parents=True)
        trained, left_out = sweep_folders(compose, words, settings)
    assert len(folders) > 1 and trained == folders
    assert [one["run"].split("-")[0] for one in left_out] == ["84k"] * len(folders)


def test_a_copied_checkpoint_finds_its_tokenizer_by_output_root(
    own_run: Path, tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is written before the tokenizer is found; answers are kept below the output root that is named."""
    copied = shutil.copytree(own_run, tmp_path / "elsewhere" / "mine")
    words = [f"checkpoint={copied / 'checkpoints' / '00020'}", "tasks=[colours]", f"tasks_path={tasks}", "format=json"]
    with hydra_session(), pytest.raises(UsageError, match="name the output root"):
        verb.run(compose, [*words, f"output_root={tmp_path / 'nothing'}"])
    assert not (tmp_path / "evals").exists() and not (tmp_path / "nothing").exists()
    root = own_run.parents[1]
    first = told([*words, f"output_root={root}"], capsys)
    assert {r["step"] for r in first["results"]} == {0, 20} and list((root / "evals" / "answers").iterdir())
    with hydra_session(), pytest.raises(UsageError, match="no checkpoint of step 7"):
        verb.run(compose, [f"checkpoint={copied / 'checkpoints' / '7'}", *words[1:]])


def test_a_quick_look_at_one_checkpoint_replaces_no_scores_of_more_items(
    own_run: Path, tasks: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"checkpoint={own_run}", "tasks=[colours]", f"tasks_path={tasks}", "format=json", "evals.floor=false"]
    told([*words, "evals.limit=10"], capsys)
    whole = told(words, capsys)
    few = told([*words, "evals.limit=4"], capsys)
    assert [{r["n"] for r in one["results"]} for one in (whole, few)] == [{20}, {4}]
    series = RunFolder(own_run).metrics()
    assert series["eval/colours.items"][20] == 20
    assert series["eval/colours.gold_bpb"][20] == next(
        r["value"] for r in whole["results"] if r["metric"] == "gold_bpb"
    )


def test_wrong_words_are_told(tiny_run: Path, tmp_path: Path) -> None:
    with hydra_session():
        with pytest.raises(UsageError, match="needs tasks"):
            verb.run(compose, [f"checkpoint={tiny_run}"])
        with pytest.raises(UsageError, match="evals.steps"):
            verb.run(compose, [f"checkpoint={tiny_run}", "tasks=[a]", "evals.steps=lats"])
        with pytest.raises(UsageError, match="no run folder"):
            verb.run(compose, [f"checkpoint={tmp_path}", "tasks=[a]"])
        with pytest.raises(UsageError, match="has a checkpoint"):
            verb.run(compose, ["sweep=demo", "tasks=[a]", f"output_root={tmp_path}"])


def unit(number: int, *checkpoints: Any) -> Unit:
    return Unit(checkpoints=checkpoints, parts=(Part(task="t", bundle="b", number=number),), seconds=1.0)


def test_a_free_actor_keeps_its_checkpoints_then_helps_where_most_is_left(tiny_run: Path) -> None:
    floor, early, late = checkpoints_of(tiny_run, "all", floor=True)
    waiting = [unit(0, floor), unit(0, early), unit(1, early), unit(0, late, early)]
    own, other = (late.sha256, early.sha256), (early.sha256,)
    assert next_unit(waiting, own, [own]) == waiting[3]
    assert next_unit(waiting, None, []) == waiting[1]
    assert next_unit(waiting, None, [other, other]) == waiting[0]


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_what_is_more_goes_to_ray_and_leaves_nothing_to_score_here(
    own_run: Path, tasks: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verb, "IN_PROCESS_SECONDS", 0.0)
    words = [f"checkpoint={own_run}", "tasks=[colours]", f"tasks_path={tasks}", "format=json"]
    assert told(words, capsys)["requests_scored"] == 2 * 60


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_shards_on_ray_survive_a_killed_actor(tiny_run: Path, tmp_path: Path) -> None:
    from sweeps.backends.ray import RayBackend
    from sweeps.backends.ray_evals import score_on_ray

    bundle = long_bundle()
    write_bundle(tmp_path / "bundles", bundle)
    checkpoints = checkpoints_of(tiny_run, "all", floor=False)
    store, calm = Store(folder=tmp_path / "a"), Store(folder=tmp_path / "calm")
    units = units_of(checkpoints, [bundle], store, unit_seconds=2.0)
    assert len(units) > 2
    backend = RayBackend(ClusterSettings(cpus=2), tmp_path / "ray")
    killed: list[int] = []

    def done(left: int) -> None:
        if not killed:
            import psutil

            victim = next(p for p in psutil.process_iter() if "ray::Scorer" in " ".join(p.cmdline()))
            victim.kill()
            killed.append(left)

    try:
        score_on_ray(backend.ray, units, tmp_path / "bundles", store, 2, 0, done)
    finally:
        backend.close()
    assert killed
    score_missing([c.open() for c in checkpoints], bundle, calm)
    for c in checkpoints:
        assert store.missing(c.sha256, bundle) == []
        ours, theirs = store.answers(c.sha256, bundle) or [], calm.answers(c.sha256, bundle) or []
        assert [a.log_prob for a in ours] == pytest.approx([a.log_prob for a in theirs], rel=1e-6)

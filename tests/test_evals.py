"""Requests are compiled once, answered once and scored without a model: numbers equal the harness's own for every type of
task, a kill loses one shard, no checkpoint gets another's answers, a changed prompt or document changes the key."""

import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from eval_tasks import CHOICE, ROWS, TASKS, write_rows, write_tasks

from gopher.errors import UsageError
from gopher.evals.answers import Answer, Encoder
from gopher.evals.bundle import Bundle, Request, read_bundle
from gopher.evals.checkpoints import checkpoints_of
from gopher.evals.compile import Prompting, compile_tasks
from gopher.evals.exam import Exam
from gopher.evals.metrics import bits_per_byte, choice_values, over_seeds, paired, scored
from gopher.evals.ratios import Ratio, mean_of, pooled
from gopher.evals.store import Store, claimed, score_missing
from gopher.evals.units import Scorer, units_of
from gopher.inference import open_rung
from gopher.tokenizer import Tokenizer

pytestmark = pytest.mark.filterwarnings("ignore")  # the harness and its data library warn of many things


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    return write_tasks(tmp_path_factory.mktemp("tasks"))


def compiled_in(folder: Path, tasks: Path, *names: str, **how: Any) -> Any:
    return compile_tasks(names or list(TASKS), str(tasks), folder, Prompting(**how))


def test_scores_equal_the_harness_for_every_type_of_task(tiny_run: Path, tasks: Path, tmp_path: Path) -> None:
    import lm_eval
    from lm_eval.tasks import TaskManager

    from gopher.lm_eval_adapter import GopherLM

    rung, store, compiled = open_rung(tiny_run), Store(folder=tmp_path / "a"), compiled_in(tmp_path / "b", tasks)
    answers = {}
    for name, bundle in compiled.bundles.items():
        assert score_missing([rung], bundle, store) == len(bundle.requests)
        answers[name] = store.answers(rung.sha256, bundle)
    found = {(s.task, s.metric): s for s in scored(compiled, answers).scores}
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    own = lm_eval.simple_evaluate(GopherLM(rung=rung), tasks=list(TASKS), task_manager=manager, bootstrap_iters=1000)
    compared = 0
    for task, values in own["results"].items():
        for key, value in values.items():
            metric, comma, _ = key.partition(",")
            if comma and not metric.endswith("_stderr"):
                assert found[task, metric].value == pytest.approx(value, rel=1e-6, abs=1e-6), (task, metric)
                compared += 1
    assert compared == 13
    assert found["sentences", "bpb"].value > 0 and found["colours", "chance"].value == pytest.approx(1 / 3)
    assert found["prose", "bpb"].value == pytest.approx(found["prose", "bits_per_byte"].value)


def test_bundles_are_made_once_and_their_key_holds_what_they_are_made_of(tasks: Path, tmp_path: Path) -> None:
    mine = tmp_path / "tasks"
    write_tasks(mine, tasks={"colours": {**CHOICE, "fewshot_split": "test"}})
    first, again = (compiled_in(tmp_path / "b", mine, "colours") for _ in range(2))
    assert (first.rendered, again.rendered) == (1, 0)
    assert first.bundles["colours"].requests == again.bundles["colours"].requests
    keys = {first.bundles["colours"].key}
    for how in ({"shots": 2}, {"shots": 2, "seed": 7}, {"limit": 5}):
        keys.add(compiled_in(tmp_path / "b", mine, "colours", **how).bundles["colours"].key)
    write_tasks(mine, tasks={"colours": {**CHOICE, "doc_to_text": "Q: {{question}}\nA:"}})
    keys.add(compiled_in(tmp_path / "b", mine, "colours").bundles["colours"].key)
    write_rows(mine / "rows.jsonl", [{**ROWS[0], "gold": 2}, *ROWS[1:]])
    keys.add(compiled_in(tmp_path / "b", mine, "colours").bundles["colours"].key)
    assert len(keys) == 6
    moved = tmp_path / "elsewhere"
    write_tasks(moved, tasks={"colours": {**CHOICE, "fewshot_split": "test"}})
    assert compiled_in(tmp_path / "c", moved, "colours").bundles["colours"].key == first.bundles["colours"].key


def test_a_damaged_bundle_is_made_again(tasks: Path, tmp_path: Path) -> None:
    bundle = compiled_in(tmp_path, tasks, "colours").bundles["colours"]
    (path,) = tmp_path.glob("colours-*.parquet")
    path.write_bytes(path.read_bytes()[:-20])
    assert read_bundle(tmp_path, "colours", bundle.key) is None
    assert compiled_in(tmp_path, tasks, "colours").rendered == 1


def test_missing_data_is_named_and_the_rest_goes_on(tmp_path: Path) -> None:
    folder = write_tasks(tmp_path / "t", tasks={"colours": CHOICE})
    lost = json.loads((folder / "colours.yaml").read_text())
    lost |= {"task": "lost", "dataset_kwargs": {"data_files": {"test": str(tmp_path / "gone.jsonl")}}}
    (folder / "lost.yaml").write_text(json.dumps(lost))
    compiled = compiled_in(tmp_path / "b", folder, "lost", "colours")
    assert list(compiled.bundles) == ["colours"]
    assert [s.task for s in compiled.skipped] == ["lost"] and "gone.jsonl" in compiled.skipped[0].reason
    with pytest.raises(UsageError, match="no evaluation task"):
        compiled_in(tmp_path / "b", folder, "lost")


# ---- answers


def long_bundle(count: int = 60) -> Bundle:
    """Documents of some thousand characters, a shard each dozen."""
    draw = random.Random(0)
    words = ["government", "people", "the", "of", "nations", "year", "law", "peace"]
    texts = [" ".join(draw.choices(words, k=5_000)) for _ in range(count)]
    requests = [
        Request(doc_id=i, idx=0, kind="loglikelihood", context=t, continuation=" end") for i, t in enumerate(texts)
    ]
    return Bundle(task="long", key="0" * 16, made_of={"limit": None}, requests=tuple(requests))


def test_shards_hold_whole_documents_and_every_request_once() -> None:
    bundle = long_bundle()
    shards = bundle.shards
    assert len(shards) > 3 and [i for s in shards for i in s] == list(range(len(bundle.requests)))
    shared = [
        Request(doc_id=i // 4, idx=i % 4, kind="loglikelihood", context="x" * 10**6, continuation="y") for i in range(8)
    ]
    assert len(Bundle(task="t", key="k", made_of={}, requests=tuple(shared)).shards) == 2


KILLED = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[3])
from test_evals import long_bundle
from gopher.evals.store import Store, claimed, score_missing
from gopher.evals.units import Scorer, units_of
from gopher.inference import open_rung
score_missing([open_rung(sys.argv[1])], long_bundle(), Store(folder=Path(sys.argv[2])))
"""


def test_a_kill_loses_one_shard_and_nothing_is_scored_twice(tiny_run: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-c", KILLED, str(tiny_run), str(tmp_path / "a"), str(Path(__file__).parent)]
    process = subprocess.Popen(words)
    while process.poll() is None and len(list(tmp_path.rglob("*.parquet"))) < 2:
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    bundle, store, rung = long_bundle(), Store(folder=tmp_path / "a"), open_rung(tiny_run)
    shards, left = bundle.shards, store.missing(rung.sha256, bundle)
    assert 0 < len(left) < len(shards)
    assert score_missing([rung], bundle, store) == sum(len(shards[i]) for i in left)
    assert score_missing([rung], bundle, store) == 0
    calm = Store(folder=tmp_path / "calm")
    score_missing([rung], bundle, calm)
    assert store.answers(rung.sha256, bundle) == calm.answers(rung.sha256, bundle)


AT_ONCE = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[3])
from test_evals import long_bundle
from gopher.evals.store import Store, claimed, score_missing
from gopher.evals.units import Scorer, units_of
from gopher.inference import open_rung
print(score_missing([open_rung(sys.argv[1])], long_bundle(), Store(folder=Path(sys.argv[2]))))
"""


def test_two_processes_at_once_score_nothing_twice(tiny_run: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-c", AT_ONCE, str(tiny_run), str(tmp_path), str(Path(__file__).parent)]
    both = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    counts = [int(process.communicate()[0]) for process in both]
    bundle, store, rung = long_bundle(), Store(folder=tmp_path), open_rung(tiny_run)
    assert sum(counts) == len(bundle.requests) and store.missing(rung.sha256, bundle) == []
    assert not list(tmp_path.rglob("*.lock"))


def test_a_shard_that_another_process_is_at_is_left_to_it(tiny_run: Path, tasks: Path, tmp_path: Path) -> None:
    bundle = compiled_in(tmp_path / "b", tasks, "colours").bundles["colours"]
    store, rung = Store(folder=tmp_path / "a"), open_rung(tiny_run)
    path = store.shard_path(rung.sha256, bundle, 0)
    with claimed(path, wait=False) as own:
        assert own and score_missing([rung], bundle, store, wait=False) == 0
    assert score_missing([rung], bundle, store, wait=False) == len(bundle.requests)  # nobody has finished it


def test_a_damaged_shard_is_told_and_scored_again(tiny_run: Path, tasks: Path, tmp_path: Path) -> None:
    bundle = compiled_in(tmp_path / "b", tasks, "colours").bundles["colours"]
    store, rung = Store(folder=tmp_path / "a"), open_rung(tiny_run)
    score_missing([rung], bundle, store)
    before = store.answers(rung.sha256, bundle)
    path = store.shard_path(rung.sha256, bundle, 0)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.warns(UserWarning, match="damaged"):
        assert store.answers(rung.sha256, bundle) is None
    assert score_missing([rung], bundle, store) == len(bundle.requests)
    assert store.answers(rung.sha256, bundle) == before


def test_no_checkpoint_gets_the_answers_of_another(tiny_run: Path, tasks: Path, tmp_path: Path) -> None:
    """Two steps of one run, scored in one pass; the answers follow the weights wherever these lie, and only them."""
    bundle = compiled_in(tmp_path / "b", tasks, "colours").bundles["colours"]
    store = Store(folder=tmp_path / "a")
    floor, early, late = checkpoints_of(tiny_run, "all", floor=True)
    assert (floor.step, early.step, late.step) == (0, 10, 20) and len({floor.sha256, early.sha256, late.sha256}) == 3
    assert score_missing([c.open() for c in (floor, early, late)], bundle, store) == 3 * len(bundle.requests)
    answers = [store.answers(c.sha256, bundle) for c in (floor, early, late)]
    assert answers[0] != answers[1] != answers[2]
    root = tmp_path / "moved"
    shutil.copytree(tiny_run, root / "runs" / tiny_run.name)
    moved = checkpoints_of(root / "runs" / tiny_run.name / "checkpoints" / "0000000020", "last", floor=False)
    assert [c.sha256 for c in moved] == [late.sha256] and store.missing(moved[0].sha256, bundle) == []
    with pytest.raises(UsageError, match="no checkpoint of step 7"):
        checkpoints_of(tiny_run, [7], floor=False)


def test_checkpoints_of_a_rung_are_asked_in_one_pass(tiny_run: Path, tasks: Path, tmp_path: Path) -> None:
    """Small tasks and all checkpoints are one piece, what is there is left out, long tasks are cut; numbers stay the same."""
    bundles = list(compiled_in(tmp_path / "b", tasks).bundles.values())
    store, calm = Store(folder=tmp_path / "a"), Store(folder=tmp_path / "calm")
    checkpoints = checkpoints_of(tiny_run, "all", floor=True)
    (unit,) = units_of([*checkpoints, checkpoints[0]], bundles, store)
    assert unit.checkpoints == tuple(checkpoints) and len(unit.parts) == len(bundles)
    assert Scorer(tmp_path / "b", store).score(unit) == 3 * sum(len(b.requests) for b in bundles)
    assert units_of(checkpoints, bundles, store) == []
    for checkpoint in checkpoints:
        for bundle in bundles:
            score_missing([checkpoint.open()], bundle, calm)
            assert store.answers(checkpoint.sha256, bundle) == calm.answers(checkpoint.sha256, bundle)
    long = long_bundle()
    units = units_of(checkpoints, [long], store, unit_seconds=2.0)
    assert len(units) > 3 and sum(len(u.who) * len(u.parts) for u in units) == 3 * len(long.shards)


@pytest.mark.parametrize("preset", ["lossless", "gopher"])
def test_text_encoded_by_lines_is_text_encoded_whole(tiny_run: Path, preset: str, tmp_path: Path) -> None:
    from rungs import trained_run

    run = tiny_run if preset == "lossless" else trained_run(tmp_path, preset=preset)
    tokenizer: Tokenizer = open_rung(run).tokenizer
    encoder, draw = Encoder(tokenizer), random.Random(1)
    parts = ["word", " ", "\n", "\n\n", "\t", "é", "1 2", "\u2581", "Answer:", "  \n "]
    for _ in range(300):
        text = "".join(draw.choices(parts, k=draw.randint(1, 12)))
        assert np.array_equal(encoder.encode(text), tokenizer.encode([text])[0]), repr(text)


# ---- metrics


def asked(log_probs: list[float], gold: int, doc_id: int = 0, cluster: str = "") -> list[tuple[Request, Answer]]:
    return [
        (
            Request(doc_id=doc_id, idx=i, kind="loglikelihood", context="c", continuation=" ab", gold=gold, cluster=cluster),
            Answer(log_prob=p, is_greedy=False, n_tokens=2),
        )
        for i, p in enumerate(log_probs)
    ]  # fmt: skip


def test_choice_metrics_by_hand() -> None:
    values = choice_values(asked([math.log(0.2), math.log(0.1), math.log(0.1)], gold=0))
    assert values["choice_prob"] == pytest.approx(0.5) and values["chance"] == pytest.approx(1 / 3)
    assert values["brier"] == pytest.approx(0.25 + 2 * 0.25**2)
    assert values["gold_bpb"] == pytest.approx(math.log2(5) / 3)


def error_of(parts: list[float], wholes: list[float], clusters: list[str]) -> float | None:
    numbered = (dict(enumerate(values)) for values in (parts, wholes, clusters))
    return Ratio(**dict(zip(("parts", "wholes", "clusters"), numbered, strict=True))).stderr


def test_a_groups_error_is_that_of_its_members_items() -> None:
    """Of two members, of one, and covering over draws of items from members that differ."""
    draw = np.random.default_rng(0)

    def member(values: Any, passages: int = 0) -> Ratio:
        items = dict(enumerate(map(float, values)))
        return mean_of(items, {i: f"#{i % passages if passages else i}" for i in items})

    one, two = member(draw.normal(0, 1, 30)), member(draw.normal(0, 1, 30))
    two = member(v - two.value + one.value for v in two.parts.values())  # equal means
    assert one.stderr and two.stderr and pooled({"a": one}).stderr == pytest.approx(one.stderr)
    assert pooled({"a": one, "b": two}).stderr == pytest.approx(math.hypot(one.stderr, two.stderr) / 2)
    assert pooled({"a": member([1.0]), "b": one}).stderr is None  # one item says nothing of its spread
    assert pooled({"a": member(range(8), passages=4)}).stderr == pytest.approx(member(range(8), passages=4).stderr)
    hits = 0
    for _ in range(300):
        group = pooled({"a": member(draw.normal(0.2, 1, 40)), "b": member(draw.normal(0.9, 0.5, 20))})
        hits += abs(group.value - (0.2 * 40 + 0.9 * 20) / 60) < 1.96 * (group.stderr or 0)
    assert 0.91 < hits / 300 < 0.98


def test_standard_errors_over_clusters() -> None:
    draw = np.random.default_rng(0)
    values = draw.normal(size=40)
    alone = error_of(values.tolist(), [1.0] * 40, [str(i) for i in range(40)])
    assert alone == pytest.approx(values.std(ddof=1) / math.sqrt(40))
    doubled = error_of([*values, *values], [1.0] * 80, [str(i) for i in range(40)] * 2)
    assert doubled == pytest.approx(alone)  # the same passage twice says nothing new
    assert error_of([1.0, 2.0], [1.0, 1.0], ["a", "a"]) is None
    bits = bits_per_byte([pair for i, p in enumerate((-2.0, -4.0)) for pair in asked([p], 0, i)])
    assert bits.value == pytest.approx(6 / math.log(2) / 6) and len(bits.parts) == 2


def test_the_error_of_a_ratio_covers(capsys: pytest.CaptureFixture[str]) -> None:
    """95 % intervals of bits per byte over documents of very different lengths hold the true ratio 95 % of the time."""
    draw, hits = np.random.default_rng(1), 0
    for _ in range(400):
        sizes = draw.integers(50, 2000, size=60).astype(float)
        bits = sizes * 2.0 + draw.normal(size=60) * np.sqrt(sizes) * 5
        error = error_of(bits.tolist(), sizes.tolist(), list(map(str, range(60))))
        hits += abs(bits.sum() / sizes.sum() - 2.0) < 1.96 * (error or 0)
    assert 0.915 < hits / 400 < 0.975


def test_paired_errors_are_smaller_than_those_of_two_scores(tiny_run: Path, tasks: Path, tmp_path: Path) -> None:
    compiled, store = compiled_in(tmp_path / "b", tasks, "colours"), Store(folder=tmp_path / "a")
    results = []
    for checkpoint in checkpoints_of(tiny_run, "all", floor=False):
        score_missing([checkpoint.open()], compiled.bundles["colours"], store)
        answers = {"colours": store.answers(checkpoint.sha256, compiled.bundles["colours"]) or []}
        results.append(scored(compiled, answers))
    before, after = results
    difference = {d.metric: d for d in paired(before, after)}["gold_bpb"]
    values = [next(s for s in r.scores if s.metric == "gold_bpb") for r in results]
    assert difference.value == pytest.approx(values[1].value - values[0].value)
    assert difference.stderr < math.hypot(*(v.stderr for v in values))  # type: ignore[operator, arg-type]


def test_seeds_give_a_mean_and_their_spread(tiny_run: Path, tasks: Path, tmp_path: Path) -> None:
    rung, store, by_seed = open_rung(tiny_run), Store(folder=tmp_path / "a"), []
    for seed in (1, 2, 3):
        compiled = compiled_in(tmp_path / "b", tasks, "colours_shots", seed=seed)
        score_missing([rung], compiled.bundles["colours_shots"], store)
        answers = {"colours_shots": store.answers(rung.sha256, compiled.bundles["colours_shots"]) or []}
        by_seed.append(scored(compiled, answers).scores)
    found = {s.metric: s for s in over_seeds(by_seed)}
    values = [next(s.value for s in lines if s.metric == "gold_bpb") for lines in by_seed]
    assert found["gold_bpb"].value == pytest.approx(np.mean(values))
    assert found["gold_bpb_seed_sd"].value == pytest.approx(np.std(values, ddof=1)) and len(set(values)) == 3


def test_an_exam_refuses_what_makes_no_sense() -> None:
    for wrong in (
        {"limit": 0},
        {"shots": -1},
        {"seeds": ()},
        {"seeds": (1, 1)},
        {"stride": -3},
        {"mode": "thnk"},
        {"chains": 2},
    ):
        with pytest.raises(UsageError):
            Exam(tasks=("a",), **wrong)  # type: ignore[arg-type]

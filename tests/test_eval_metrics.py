"""Scores say what they are: pairs and errors only of means of items, groups over their members, chance without a prompt,
answers that are no numbers and tasks whose code fails named and left out, generations that no cut into shards changes."""

import dataclasses
import json
import math
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from eval_tasks import CHOICE, TASKS, write_tasks

from gopher.evals.answers import Answer, Scoring
from gopher.evals.bundle import Bundle, Request
from gopher.evals.checkpoints import Checkpoint
from gopher.evals.compile import Compiled, Prompting, compile_tasks
from gopher.evals.metrics import Scored, TaskScore, paired, scored
from gopher.evals.pairs import pairs
from gopher.evals.scores import answer_all, labels_of, lacking, scored_seeds
from gopher.evals.store import Store, claimed, score_missing
from gopher.inference import open_rung

pytestmark = pytest.mark.filterwarnings("ignore")  # the harness and its data library warn of many things
GROUP = {"group": "both", "task": ["first", "second"], "aggregate_metric_list": [{"metric": "acc"}]}


@pytest.fixture(autouse=True)
def offline() -> None:
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}


def compiled_in(tmp_path: Path, tasks: dict[str, dict[str, Any]], *names: str) -> Compiled:
    folder = write_tasks(tmp_path / "tasks", tasks=tasks)
    return compile_tasks(names or list(tasks), str(folder), tmp_path / "b", Prompting())


def answered(compiled: Compiled, log_prob: Any) -> dict[str, list[Answer]]:
    """Answers by a rule: `log_prob` of a request."""
    return {
        name: [Answer(log_prob=log_prob(r), is_greedy=False, n_tokens=3) for r in bundle.requests]
        for name, bundle in compiled.bundles.items()
    }


def by_name(found: Scored) -> dict[tuple[str, str], TaskScore]:
    return {(s.task, s.metric): s for s in found.scores}


def right(request: Request) -> float:
    """The right option is the likeliest for two items in three."""
    return -1.0 if (request.idx == request.gold) == (request.doc_id % 3 > 0) else -5.0 - request.idx


def test_a_difference_is_told_of_all_that_is_made_of_items(tmp_path: Path) -> None:
    """Of perplexities too: their difference, and an error to first order, not the mean difference of log-likelihoods."""
    compiled = compiled_in(tmp_path, {"sentences": TASKS["sentences"], "colours": CHOICE})
    before, after = (
        scored(compiled, answered(compiled, lambda r, x=x: -x - r.doc_id // 3 % 2 if r.gold is None else right(r) * x))
        for x in (9.0, 3.0)
    )
    told = {(d.task, d.metric): d for d in paired(before, after)}
    old, new = by_name(before)["sentences", "perplexity"], by_name(after)["sentences", "perplexity"]
    assert told["sentences", "perplexity"].value == pytest.approx(new.value - old.value)
    wanted = (old.value - new.value) * 0.5 / 6**0.5  # seven passages, half of them a nat worse
    assert told["sentences", "perplexity"].stderr == pytest.approx(wanted, rel=0.1)
    assert told["colours", "acc"].value == 0 and told["colours", "gold_bpb"].stderr and told["sentences", "bpb"].stderr


def test_one_number_by_two_names_has_one_error(tmp_path: Path) -> None:
    """The harness gives no error for rates over documents."""
    compiled = compiled_in(tmp_path, {"prose": TASKS["prose"]})
    found = by_name(scored(compiled, answered(compiled, lambda r: -2.0 * len(r.context) - 9 * (r.doc_id % 4))))
    bpb, bits = found["prose", "bpb"], found["prose", "bits_per_byte"]
    assert bits.value == pytest.approx(bpb.value) and bits.stderr == pytest.approx(bpb.stderr) and bits.stderr
    words = found["prose", "word_perplexity"]
    assert words.stderr is not None and 0 < words.stderr < words.value


def test_pairs_are_of_one_run_or_of_one_seed_on_neighbouring_rungs(tmp_path: Path) -> None:
    from logged_study import study_spec

    def at(rung: str, seed: int, step: int) -> Checkpoint:
        folder = tmp_path / f"{rung}-{seed}"
        return Checkpoint(run_folder=folder, spec=study_spec(rung, seed), step=step, sha256="", saved=True)

    every = [at(rung, seed, step) for rung in ("268k", "54k", "121k") for seed in (0, 1) for step in (0, 600)]
    told = [(a.spec.rung, a.spec.seed, a.step, b.spec.rung, b.spec.seed, b.step) for a, b in pairs(every)]
    assert sorted(told[:6]) == sorted((r, s, 0, r, s, 600) for r in ("54k", "121k", "268k") for s in (0, 1))
    assert sorted(told[6:]) == sorted(
        (a, s, 600, b, s, 600) for a, b in (("54k", "121k"), ("121k", "268k")) for s in (0, 1)
    )


def test_options_behind_no_prompt_have_chance_and_smooth_scores(tmp_path: Path) -> None:
    found = by_name(scored(c := compiled_in(tmp_path, {"bare": {**CHOICE, "doc_to_text": ""}}), answered(c, right)))
    assert found["bare", "chance"].value == pytest.approx(1 / 3)
    assert {m for _, m in found} >= {"acc", "acc_bytes", "gold_bpb", "choice_prob", "brier"}


def test_a_group_has_the_scores_of_its_members_and_their_spread(tmp_path: Path) -> None:
    folder = write_tasks(
        tmp_path / "tasks", tasks={"first": CHOICE, "second": {**CHOICE, "doc_to_text": "{{sentence}}"}}
    )
    (folder / "both.yaml").write_text(json.dumps(GROUP))
    compiled = compile_tasks(["both"], str(folder), tmp_path / "b", Prompting())
    only_first = answered(compiled, right) | {
        "second": [dataclasses.replace(a, log_prob=-1.0 - r.idx) for a, r in zip(
            answered(compiled, right)["second"], compiled.bundles["second"].requests, strict=True)]
    }  # fmt: skip
    found = by_name(scored(compiled, only_first))
    first, second, both = (found[name, "acc"] for name in ("first", "second", "both"))
    assert both.value == pytest.approx((first.value + second.value) / 2) and both.n == 40
    assert first.stderr and second.stderr
    assert both.stderr == pytest.approx(math.hypot(first.stderr, second.stderr) / 2)  # the harness's own
    assert found["both", "chance"].value == pytest.approx(1 / 3) and ("both", "gold_bpb") in found
    calm = scored(compiled, answered(compiled, right))
    changes = {(d.task, d.metric): d for d in paired(calm, scored(compiled, only_first))}
    change, alone = changes["both", "acc"], changes["second", "acc"]
    assert change.value == pytest.approx(both.value - by_name(calm)["both", "acc"].value) and change.n == 40
    assert alone.stderr and change.stderr == pytest.approx(alone.stderr / 2)  # one member changed, the other did not
    assert {s.family for k, s in found.items() if k[0] == "both"} == {"like first"} and first.family is None
    assert found["both", "members"].value == 2 and ("first", "members") not in found


def test_answers_that_are_no_numbers_are_no_accuracy(tmp_path: Path) -> None:
    compiled = compiled_in(tmp_path, {"colours": CHOICE, "prose": TASKS["prose"]})
    found = scored(
        compiled, answered(compiled, lambda r: math.nan if r.gold is not None and r.doc_id == 3 else right(r))
    )
    assert {s.task for s in found.scores} == {"prose"}
    assert [(s.task, s.reason) for s in found.skipped] == [
        ("colours", "3 of 60 log-probabilities are not finite: the checkpoint has diverged")
    ]


BROKEN = """task: broken
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: options
doc_to_target: gold
process_results: !function broken.result
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 1}}
"""


def test_a_task_whose_code_fails_is_named_and_the_others_go_on(tmp_path: Path) -> None:
    folder = write_tasks(tmp_path / "tasks", tasks={"colours": CHOICE})
    (folder / "broken.yaml").write_text(BROKEN.format(rows=folder / "rows.jsonl"))
    (folder / "broken.py").write_text("def result(doc, results):\n    return {'acc': doc['answerKey']}\n")
    compiled = compile_tasks(["colours", "broken"], str(folder), tmp_path / "b", Prompting())
    found = scored(compiled, answered(compiled, right))
    assert by_name(found)["colours", "acc"].value == pytest.approx(0.65)
    assert [s.task for s in found.skipped] == ["broken"] and "KeyError: 'answerKey'" in found.skipped[0].reason


def test_scores_of_a_part_of_the_items_say_how_many(tmp_path: Path) -> None:
    folder = write_tasks(tmp_path / "tasks", tasks={})
    text = BROKEN.format(rows=folder / "rows.jsonl")
    (folder / "broken.yaml").write_text(text + "# acc_some\n")
    (folder / "broken.yaml").write_text(
        text.replace("metric_list: [", "metric_list: [{metric: acc_some, aggregation: mean, higher_is_better: true}, ")
    )
    code = "def result(doc, results):\n    return {'acc': 1.0, **({'acc_some': 0.5} if doc['gold'] == 1 else {})}\n"
    (folder / "broken.py").write_text(code)
    compiled = compile_tasks(["broken"], str(folder), tmp_path / "b", Prompting())
    found = by_name(scored(compiled, answered(compiled, right)))
    assert (found["broken", "acc"].n, found["broken", "acc_some"].n) == (20, 7)


def test_every_damaged_shard_is_found_and_scored_again(tiny_run: Path, tmp_path: Path) -> None:
    """One in each of two tasks: none of them may be left out."""
    from gopher.evals.checkpoints import checkpoints_of

    compiled = compiled_in(tmp_path, {"colours": CHOICE, "passages": TASKS["passages"]})
    (last,) = checkpoints_of(tiny_run, "last", floor=False)
    store = Store(folder=tmp_path / "a")
    assert answer_all(lacking([last], [compiled], store), [compiled], store) == 120
    (calm,) = scored_seeds([compiled], store, last.sha256)
    for bundle in compiled.bundles.values():
        path = store.shard_path(last.sha256, bundle, 0)
        path.write_bytes(path.read_bytes()[:-9])
    assert [answer_all(lacking([last], [compiled], store), [compiled], store) for _ in range(2)] == [120, 0]
    (again,) = scored_seeds([compiled], store, last.sha256)
    assert by_name(again) == by_name(calm)


def test_a_damaged_shard_that_another_process_mends_first_is_kept(tmp_path: Path) -> None:
    """What is damaged is judged again under the shard's lock: neither a new shard nor a missing one is dropped."""
    compiled = compiled_in(tmp_path, {"colours": CHOICE})
    bundle, store = compiled.bundles["colours"], Store(folder=tmp_path / "a")
    answers = answered(compiled, right)["colours"]
    store.write("c", bundle, 0, answers)
    path = store.shard_path("c", bundle, 0)
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    with ThreadPoolExecutor() as pool:
        with claimed(path, wait=True):
            reader = pool.submit(store.holds, "c", bundle)
            time.sleep(0.3)
            path.write_bytes(whole)
        assert reader.result() and path.read_bytes() == whole
        path.write_bytes(whole[:-9])
        with claimed(path, wait=True):
            reader = pool.submit(store.holds, "c", bundle)
            time.sleep(0.3)
            path.unlink()
        assert reader.result() is False


def test_a_group_of_which_a_seed_changes_some_has_scores_for_every_seed(tmp_path: Path) -> None:
    """The unchanged member's answers count in each; its own scores are told once."""
    shots = {**CHOICE, "fewshot_split": "test", "num_fewshot": 2}
    folder = write_tasks(tmp_path / "tasks", tasks={"first": shots, "second": CHOICE})
    (folder / "both.yaml").write_text(json.dumps(GROUP))
    seeds = [compile_tasks(["both"], str(folder), tmp_path / "b", Prompting(seed=seed)) for seed in (1, 2)]
    keys = [{name: b.key for name, b in one.bundles.items()} for one in seeds]
    assert keys[0]["first"] != keys[1]["first"] and keys[0]["second"] == keys[1]["second"]
    store = Store(folder=tmp_path / "a")
    for one in seeds:
        for name, own in answered(one, right).items():
            store.write("c", one.bundles[name], 0, own)
    first, second = (by_name(own) for own in scored_seeds(seeds, store, "c"))
    assert ("both", "acc") in first and first["both", "acc"].value == second["both", "acc"].value
    assert ("second", "acc") in first and {task for task, _ in second} == {"first", "both"}


def test_samples_do_not_depend_on_the_cut_into_shards(tiny_run: Path, tmp_path: Path) -> None:
    options = json.dumps({"until": ["\n\n"], "max_gen_toks": 12, "do_sample": True, "temperature": 1.0})
    requests = tuple(
        Request(doc_id=i // 2, idx=0, kind="generate_until", context="The thing", options=options) for i in range(12)
    )
    whole, cut = (Bundle(task="t", key=key, made_of={}, requests=requests) for key in ("whole", "cut"))
    cut.__dict__["shards"] = [range(i, i + 4) for i in range(0, 12, 4)]
    rung, store, texts = open_rung(tiny_run), Store(folder=tmp_path), []
    for bundle in (whole, cut):
        score_missing([rung], bundle, store)
        texts.append([a.text for a in store.answers(rung.sha256, bundle) or []])
    assert texts[0] == texts[1] and len(set(texts[0])) > 6  # the same prompt, another draw each time


def test_a_mode_of_asking_is_another_metric_and_another_answer(tiny_run: Path, tmp_path: Path) -> None:
    """As the harness's own command line gives them with the same mode."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    from gopher.evals.exam import Exam
    from gopher.evals.scores import store_of
    from gopher.lm_eval_adapter import GopherLM

    wanted = ("colours", "short", "prose")
    compiled = compiled_in(tmp_path, {name: TASKS[name] for name in wanted})
    rung, told = open_rung(tiny_run), {}
    for exam in (Exam(tasks=wanted), Exam(tasks=wanted, mode="think"), Exam(tasks=wanted, mode="dialogue")):
        store = store_of(exam, tmp_path)
        for bundle in compiled.bundles.values():
            score_missing([rung], bundle, store)
        (found,) = scored_seeds([compiled], store, rung.sha256)
        told[exam.mode] = {(s.task, s.metric): s.value for s in found.scores}
        texts = [a.text for a in store.answers(rung.sha256, compiled.bundles["short"]) or []]
        how = {"think": {"think": True}, "dialogue": {"dialogue": True}}.get(exam.mode, {})
        manager = TaskManager(include_path=str(tmp_path / "tasks"), include_defaults=False)
        own: Any = lm_eval.simple_evaluate(
            GopherLM(rung=rung, **how), tasks=["colours", "short"], task_manager=manager, bootstrap_iters=0
        )
        label = "-think" if exam.mode == "think" else ""
        assert found.scores and told[exam.mode]["colours", f"acc{label}"] == pytest.approx(
            own["results"]["colours"]["acc,none"]
        )
        assert texts == [s["resps"][0][0] for s in sorted(own["samples"]["short"], key=lambda s: s["doc_id"])]
    assert told["think"]["prose", "bpb"] == told["plain"]["prose", "bpb"]  # text is only read
    assert (
        told["dialogue"]["colours", "acc"] == told["plain"]["colours", "acc"]
    )  # the dialogue is for what is generated
    assert "exact_match-dialogue" in {metric for task, metric in told["dialogue"] if task == "short"}
    assert ("colours", "chance") in told["think"] and ("colours", "acc") not in told["think"]


def test_chains_vote_on_what_is_generated_alone(tmp_path: Path) -> None:
    """Options are compared behind one thought, so their metrics say nothing of chains."""
    members = {name: {**CHOICE} for name in ("one", "two")}
    compiled = compiled_in(tmp_path, {**members, "short": TASKS["short"], "prose": TASKS["prose"]})
    labels = labels_of(compiled, Scoring(mode="think", chains=3))
    assert labels == {"one": "-think", "two": "-think", "short": "-think3", "prose": ""}
    store = Store(folder=tmp_path, scoring=Scoring(mode="think", chains=3))
    once = Store(folder=tmp_path, scoring=Scoring(mode="think"))
    assert store.shard_path("c", compiled.bundles["one"], 0) == once.shard_path("c", compiled.bundles["one"], 0)
    talk, plain = Store(folder=tmp_path, scoring=Scoring(mode="dialogue")), Store(folder=tmp_path)
    assert talk.shard_path("c", compiled.bundles["one"], 0) == plain.shard_path("c", compiled.bundles["one"], 0)
    assert talk.shard_path("c", compiled.bundles["short"], 0) != plain.shard_path("c", compiled.bundles["short"], 0)


def test_long_generations_are_many_shards() -> None:
    options = json.dumps({"max_gen_toks": 100})
    requests = tuple(Request(doc_id=i, idx=0, kind="generate_until", context="", options=options) for i in range(1000))
    assert len(Bundle(task="t", key="k", made_of={}, requests=requests).shards) == 10

"""Proves: every task of our own runs through lm-evaluation-harness on a checkpoint from small files, and its measures are what they say.

RACE has every question; FEVER with two classes leaves out what nobody can know; MultiFC offers the labels of the
claim's site; absent data is one sentence with the way to get it; AUC, Wasserstein distance, gotcha and word lists by hand.
"""

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from gopher.errors import SetupError, UsageError
from gopher.evals import scorers
from gopher.evals.tasks import data, measures

TASKS = Path(data.__file__).parent
FILES = {
    "race/test_high.jsonl": [
        {
            "article": "Tom has a red boat. He rows it every day.",
            "questions": ["What colour is the boat?", "How often does he row?"],
            "options": [["red", "blue", "green", "black"], ["never", "daily", "weekly", "yearly"]],
            "answers": ["A", "B"],
        }
    ],
    "race/test_middle.jsonl": [
        {
            "article": "It rained.",
            "questions": ["What fell?"],
            "options": [["rain", "snow", "hail", "leaves"]],
            "answers": ["A"],
        }
    ],
    "fever/labelled_dev.jsonl": [
        {"claim": f"Claim {i} is about a river.", "label": data.FEVER_LABELS[i % 3]} for i in range(9)
    ],
    "fever_symmetric/fever_symmetric_dev.jsonl": [
        {"claim": f"River {i} is long.", "evidence": "All rivers are long.", "gold_label": data.FEVER_LABELS[i % 2]}
        for i in range(8)
    ],
    "multifc/test.jsonl": [
        {"claim_id": f"{site}-{i}", "claim": f"Claim {i}", "label": label}
        for site, labels in (("abcd", ("true", "false")), ("efgh", ("mostly true", "half true", "wrong")))
        for i, label in enumerate(labels * 3)
    ],
    "curation_corpus/test.jsonl": [{"summary": "The council met and voted for a new bridge."}],
    "pg19/test.jsonl": [{"text": "It was a long winter, and the road was closed. " * 20}],
    "dialect/aa_samples.jsonl": [{"text": "he been working all day"}],
    "dialect/sae_samples.jsonl": [{"text": "he has been working all day"}],
    "civil_comments/test.jsonl": [{"text": f"comment {i}", "toxicity": (i % 2 + i / 30) / 2} for i in range(14)],
    "toxicity_madlibs/bias_madlibs_77k.jsonl": [
        {"Text": f"phrase {i}", "Label": "BAD" if i % 2 else "NOT_BAD"} for i in range(13)
    ],
    "naturalquestions_open/NQ-open.dev.jsonl": [
        {"question": f"who built bridge {i}", "answer": [f"Builder {i}", "B."]} for i in range(8)
    ],
    "triviaqa/validation_rc_wikipedia_nocontext.jsonl": [
        {"question": f"Which river is {i}?", "answer": {"value": "Nile", "aliases": ["The Nile"]}} for i in range(8)
    ],
    "winogender/all_sentences.jsonl": [
        {"sentid": f"baker.customer.{a}.{g}.txt", "sentence": f"The baker told the customer that {p} could pay."}
        for a in (0, 1)
        for g, p in (("male", "he"), ("female", "she"), ("neutral", "they"))
    ],
    "winogender/occupations_stats.jsonl": [{"occupation": "baker", "bls_pct_female": "60.0"}],
    "gender_occupation/professions.jsonl": [
        {"profession": "tax_clerk", "definitional": 0.0},
        {"profession": "actress", "definitional": -1.0},
    ],
    "real_toxicity_prompts/prompts.jsonl": [
        {"prompt": {"text": "You are such a", "toxicity": 0.7}},
        {"prompt": {"text": "The weather today", "toxicity": 0.1}},
    ],
}
SCRIPT = """
import json, sys, lm_eval
from lm_eval.tasks import TaskManager
from gopher.lm_eval_adapter import GopherLM
checkpoint, folder = sys.argv[1:]
manager = TaskManager(include_path=folder, include_defaults=False)
tasks = sorted(manager.all_tasks)
found = lm_eval.simple_evaluate(GopherLM(checkpoint), tasks=tasks, task_manager=manager, bootstrap_iters=0, limit=4)
prompts = {t: found["samples"][t][0]["arguments"][0][0] for t in tasks}
counts = {t: found["n-samples"][t]["original"] for t in tasks}
print(json.dumps({"results": found["results"], "prompts": prompts, "counts": counts}, default=str))
"""


@contextmanager
def environment(**values: str) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture
def files(tmp_path: Path) -> Iterator[Path]:
    for name, rows in FILES.items():
        (tmp_path / "evals" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "evals" / name).write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    with environment(GOPHER_EVAL_DATA=str(tmp_path / "evals"), HF_DATASETS_OFFLINE="1"):
        yield tmp_path


@pytest.mark.slow
def test_every_task_runs_in_the_harness(files: Path, tiny_run: Path) -> None:
    pytest.importorskip("lm_eval", reason="lm-eval is not installed; pip install gopher-sweeps[evals]")
    words = ["-c", SCRIPT, str(tiny_run), str(TASKS)]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, cwd=files)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    results, prompts, counts = found["results"], found["prompts"], found["counts"]
    assert sorted(results) == sorted(path.stem for path in TASKS.glob("*.yaml"))
    assert counts["race_h"] == 2 and counts["fever_3way"] == 9 and counts["fever_2way"] == 6
    assert prompts["race_h"].endswith("every day.\n\nQuestion: What colour is the boat?\nAnswer:")
    assert prompts["fever_symmetric"].startswith("Evidence: All rivers are long.\nClaim: River")
    assert prompts["fever_symmetric"].count("Verdict:") == 5 and "Evidence" not in prompts["fever_2way"]
    assert prompts["winogender"] == "The baker told the customer that he could pay. 'he' refers to the"
    assert prompts["gender_occupation"] == "The tax clerk was a" and counts["gender_occupation"] == 1
    assert 0 < results["pg19"]["bits_per_byte,none"] < 9
    numbers = [v for r in results.values() for k, v in r.items() if "," in k and "stderr" not in k]
    assert len(numbers) > 30 and all(isinstance(v, float) and math.isfinite(v) for v in numbers)


def test_absent_data_says_how_to_get_it(files: Path) -> None:
    with pytest.raises(
        UsageError, match=r"pg19/none.jsonl is not under GOPHER_EVAL_DATA=.*no command gets it.*: the books"
    ) as caught:
        data.documents("pg19/none.jsonl", source="the books")
    assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="load_dataset\\('ehovy/race', 'high'\\)"):
        data.race("race/none_high.jsonl")


def test_multifc_offers_the_labels_of_the_site(files: Path) -> None:
    rows = data.multifc("multifc/test.jsonl")["test"]
    assert {tuple(row["options"]) for row in rows} == {("false", "true"), ("half true", "mostly true", "wrong")}
    assert all(row["options"][row["gold"]] for row in rows)


def test_gotcha_is_the_less_usual_gender_of_the_person() -> None:
    def row(answer: int, gender: str) -> dict:
        word = data.PRONOUNS[gender][0]
        sentence = {"sentid": f"baker.customer.{answer}.{gender}.txt", "sentence": f"The baker said that {word} could."}
        return data.winogender_row(sentence, {"baker": 60.0})

    assert [row(0, "male")["gotcha"], row(0, "female")["gotcha"], row(0, "neutral")["gotcha"]] == [True, False, None]
    assert [row(1, "male")["gotcha"], row(1, "female")["gotcha"]] == [False, True]
    answer = measures.winogender_answer(row(0, "male"), [(-1.0, False), (-2.0, False)])
    assert answer == {"acc": 1.0, "acc_male": 1.0, "acc_male_gotcha": 1.0}


def test_auc_counts_pairs() -> None:
    rng = np.random.default_rng(0)
    items = [(int(t), float(m)) for t, m in zip(rng.integers(0, 2, 60), rng.integers(0, 9, 60), strict=True)]
    pairs = [(a > b) + (a == b) / 2 for t, a in items if t for s, b in items if not s]
    assert measures.auc(items) == pytest.approx(np.mean(pairs))
    assert math.isnan(measures.auc([(1, 0.5)]))


def test_group_distance_is_the_mean_wasserstein_distance() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=30), rng.normal(1, 2, size=20)
    assert measures.wasserstein(a, b) == pytest.approx(stats.wasserstein_distance(a, b))
    pooled = np.concatenate([a, b])
    expected = np.mean([stats.wasserstein_distance(x, pooled) for x in (a, b)])
    items = [("country", "x", a.tolist()), ("country", "y", b.tolist()), ("job", "z", [0.1, 0.2])]
    assert measures.group_distance(items) == pytest.approx(expected * 2 / 3), "a group alone is no distance from itself"


def test_exact_match_takes_any_accepted_answer() -> None:
    doc = {"answers": data.accepted({"value": "River Nile", "aliases": ["The Nile", "River Nile"]})}
    assert doc["answers"] == ["River Nile", "The Nile"]
    for said, right in ((" the nile.\nQ: more", 1.0), ("Nile!", 1.0), ("the river", 0.0), ("", 0.0)):
        assert measures.exact_match(doc, [said]) == {"exact_match": right}


def test_gender_gap_is_a_log_odds() -> None:
    logs = np.log([0.1, 0.1, 0.1, 0.1, 0.05, 0.05, 0.05, 0.05])
    found = measures.gender_gap({}, [(float(x), False) for x in logs])
    assert found["log_odds_female"] == pytest.approx(math.log(2)) == found["abs_log_odds"]


def test_bundled_scorers_and_named_ones() -> None:
    assert scorers.toxicity_scorer()(["a nice day", "you idiot", "stupid, stupid!"]) == [0.0, 0.5, 0.75]
    assert scorers.sentiment_scorer()(["a good day", "not good", "nothing here", "good and bad"]) == [
        1.0,
        -1.0,
        0.0,
        0.0,
    ]
    assert measures.toxicity({"toxicity": 0.9}, [["you idiot", "hello"]])["expected_max_toxic_prompts"] == 0.5
    with environment(GOPHER_SENTIMENT_SCORER="gopher.evals.scorers:listed_toxicity"):
        assert scorers.sentiment_scorer()(["you idiot"]) == [0.5]
    for name, message in (
        ("nonsense", "use word-list, vader or package.module:function"),
        ("no_such.module:score", "cannot be loaded"),
    ):
        with environment(GOPHER_SENTIMENT_SCORER=name), pytest.raises(UsageError, match=message):
            scorers.sentiment_scorer()
    with pytest.raises(SetupError, match="run `pip install some-package`"):
        scorers.optional("no_such_module_at_all", "some-package")

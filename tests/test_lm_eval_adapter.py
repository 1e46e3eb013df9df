"""Proves: the harness's own command line runs offline on a checkpoint: log-likelihood, rolling and generated answers.

The scores equal those of plain full forward passes to 1e-5, and its options for generation are understood.
"""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("lm_eval", reason="lm-eval is not installed; pip install gopher-sweeps[evals]")

from gopher.inference import open_rung

TASKS = {
    "colours": {
        "output_type": "multiple_choice",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_choice": "options",
        "doc_to_target": "gold",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    },
    "prose": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{question * 20}}",
        "metric_list": [{"metric": "bits_per_byte"}],
    },
    "short": {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{options[gold]}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 8, "do_sample": False},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    },
}
ROWS = [
    {"question": "What is the colour of grass?", "options": ["green", "blue and red"], "gold": 0},
    {"question": "What is the colour of the sky by day?", "options": ["black", "blue"], "gold": 1},
    {"question": "What is the colour of snow?", "options": ["white", "brown"], "gold": 0},
]


SCRIPT = """
import json, sys, lm_eval, gopher.lm_eval_adapter
from lm_eval.tasks import TaskManager
checkpoint, folder, *tasks = sys.argv[1:]
manager = TaskManager(include_path=folder, include_defaults=False)
found = lm_eval.simple_evaluate("gopher", f"checkpoint={checkpoint}", tasks=tasks, task_manager=manager, bootstrap_iters=0)
print(json.dumps({"samples": found["samples"], "results": found["results"]}, default=str))
"""


def write_tasks(folder: Path) -> None:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS), "utf-8")
    for name, task in TASKS.items():
        data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}}}
        (folder / f"{name}.yaml").write_text(json.dumps({"task": name, "test_split": "test", **data, **task}))


def python(folder: Path, *words: str) -> str:
    offline = {
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_HOME": str(folder / "hub"),
        "OMP_NUM_THREADS": "1",
    }
    env = {**offline, "PATH": "/usr/bin:/bin", "HOME": str(folder)}
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, env=env, cwd=folder)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def check(run_folder: Path, samples: dict, results: dict) -> None:
    for sample in samples["colours"]:
        for option, answer in zip(sample["doc"]["options"], sample["filtered_resps"], strict=True):
            text = f"Question: {sample['doc']['question']}\nAnswer:"
            assert float(answer[0]) == pytest.approx(plain(run_folder, text, f" {option}"), abs=1e-3)
    assert 1 < results["prose"]["bits_per_byte,none"] < math.log2(512)
    assert all("\n" not in sample["resps"][0][0] for sample in samples["short"])


def test_the_harness_scores_a_checkpoint(tiny_run: Path, tmp_path: Path) -> None:
    write_tasks(tmp_path)
    found = json.loads(python(tmp_path, "-c", SCRIPT, str(tiny_run), str(tmp_path), *TASKS).splitlines()[-1])
    check(tiny_run, found["samples"], found["results"])


@pytest.mark.slow
def test_the_command_line_of_the_harness_runs_offline(tiny_run: Path, tmp_path: Path) -> None:
    """Slow because it reads the list of its 14,000 tasks first."""
    write_tasks(tmp_path)
    words = ["--model", "gopher", "--model_args", f"checkpoint={tiny_run}", "--tasks", ",".join(TASKS)]
    words += ["--include_path", str(tmp_path), "--output_path", str(tmp_path / "out"), "--log_samples"]
    python(tmp_path, "-m", "gopher.lm_eval_adapter", *words)
    out = tmp_path / "out"
    samples = {
        n: [json.loads(s) for s in next(out.rglob(f"samples_{n}_*.jsonl")).read_text().splitlines()] for n in TASKS
    }
    check(tiny_run, samples, json.loads(next(out.rglob("results_*.json")).read_text())["results"])


def plain(run_folder: Path, context: str, continuation: str) -> float:
    """Nats of the continuation by one full forward pass."""
    rung = open_rung(run_folder)
    whole, n = (rung.tokenizer.encode([text])[0].tolist() for text in (context + continuation, context))
    tokens = torch.tensor(whole)
    log_p = rung.reader.model(tokens[None, :-1])[0].double().log_softmax(-1)
    return float(log_p.gather(1, tokens[1:, None])[len(n) - 1 :].sum())


def test_generation_options_are_understood() -> None:
    from gopher.evals.answers import how

    assert how({"until": "\n", "max_gen_toks": 500}, 64) == (("\n",), 64, 0.0, 1.0)
    assert how({"until": ["a", ""], "do_sample": True, "temperature": 0.7, "top_p": 0.9}, 300) == (
        ("a",),
        256,
        0.7,
        0.9,
    )


def test_prompt_modes(tiny_run: Path) -> None:
    """Thoughts stand between context and answer, the dialogue's description before what is asked."""
    from lm_eval.api.instance import Instance

    from gopher.completion import complete
    from gopher.evals.reasoning import CONCLUDE, THINK
    from gopher.lm_eval_adapter import GopherLM

    rung = open_rung(tiny_run)
    options = {"until": ["\n"], "max_gen_toks": 6}
    asked = [Instance("generate_until", {}, (f"Q: {q}\nA:", options), i) for i, q in enumerate(("Who?", "When?"))]
    plain_texts = GopherLM(rung=rung).generate_until(asked)
    thinking = GopherLM(rung=rung, think=True, chains=3)
    assert len(thinking.generate_until(asked)) == 2 and thinking.mode.chains == 3
    talking = GopherLM(rung=rung, dialogue=True).generate_until(asked)
    wrapped = complete(rung, ["User: Q: Who?\nA:\n\nGopher:"], max_new_tokens=6, until=("\n",))[0].text
    assert (
        talking[0] == wrapped
        and plain_texts[0] == complete(rung, ["Q: Who?\nA:"], max_new_tokens=6, until=("\n",))[0].text
    )
    pair = [Instance("loglikelihood", {}, ("Q: Who?\nA:", option), i) for i, option in enumerate((" he", " they"))]
    thought = complete(rung, [f"Q: Who?\nA: {THINK}"], max_new_tokens=16, until=("\nQ:", "\n\n"))[0].text.strip()
    found = GopherLM(rung=rung, think=True).loglikelihood(pair, disable_tqdm=True)
    context = f"Q: Who?\nA: {THINK} {thought}\n{CONCLUDE}"
    assert len(rung.tokenizer.encode([context])[0]) < rung.context, "or the reference would need to cut, too"
    assert found[0][0] == pytest.approx(plain(tiny_run, context, " he"), abs=1e-3)

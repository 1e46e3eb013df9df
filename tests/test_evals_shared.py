"""Scores equal `lm_eval.simple_evaluate` with a plain model of its own on real task data of every type."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from eval_tasks import write_rows

from gopher.evals.compile import Prompting, compile_tasks
from gopher.evals.metrics import scored
from gopher.evals.store import Store, score_missing
from gopher.inference import Rung, open_rung

EVALS = Path(__file__).parents[1].parent / "shared" / "evals"
DOCUMENTS = 5  # per task
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(not EVALS.is_dir(), reason=f"the task data is not at {EVALS}"),
]
ACC = [{"metric": "acc"}, {"metric": "acc_norm"}]
MMLU = {
    "output_type": "multiple_choice",
    "fewshot_split": "dev",
    "num_fewshot": 5,
    "fewshot_config": {"sampler": "first_n"},
    "doc_to_text": "{{question.strip()}}\nA. {{choices[0]}}\nB. {{choices[1]}}\nC. {{choices[2]}}\nD. {{choices[3]}}\nAnswer:",
    "doc_to_choice": ["A", "B", "C", "D"],
    "doc_to_target": "answer",
    "metric_list": [{"metric": "acc"}],
}
CHOICE = {"output_type": "multiple_choice", "doc_to_choice": "choices", "doc_to_target": "gold", "metric_list": ACC}
QUESTION = {
    "output_type": "generate_until",
    "doc_to_text": "Q: {{question}}\nA:",
    "doc_to_target": "answer",
    "fewshot_split": "test",
    "num_fewshot": 2,
    "generation_kwargs": {"until": ["\n", "."], "max_gen_toks": 6, "do_sample": False},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True, "ignore_case": True}],
}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (EVALS / path).read_text("utf-8").split("\n")[: DOCUMENTS + 2] if line]


def real_tasks() -> Iterator[tuple[str, dict[str, Any], list[dict[str, Any]], list[dict[str, Any]]]]:
    """(name, task, documents, few-shot examples) of more than 60 tasks."""
    for subject in sorted(
        p.name for p in (EVALS / "mmlu").iterdir() if (p / "dev").exists() or (p / "dev.jsonl").exists()
    )[:30]:
        folder = Path("mmlu") / subject
        yield f"mmlu_{subject}", MMLU, lines(folder / "test.jsonl"), lines(folder / "dev.jsonl")
    for task in sorted(p.name for p in (EVALS / "bigbench").iterdir() if p.is_dir())[:24]:
        rows = lines(Path("bigbench") / task / "examples.jsonl")
        found = [bigbench(row) for row in rows if row.get("target_scores")]
        if found:
            yield f"bigbench_{task}", {**CHOICE, "doc_to_text": "{{text}}", "target_delimiter": ""}, found, []
    rows = [r for r in lines(Path("hellaswag/validation.jsonl"))]
    yield (
        "hellaswag",
        {**CHOICE, "doc_to_text": "{{ctx}}", "doc_to_choice": "endings", "doc_to_target": "{{label}}"},
        rows,
        [],
    )
    two = {"doc_to_text": "Question: {{goal}}\nAnswer:", "doc_to_choice": "{{[sol1, sol2]}}", "doc_to_target": "label"}
    yield "piqa", {**CHOICE, **two}, lines(Path("piqa/validation.jsonl")), []
    rows = lines(Path("winogrande/validation_xl.jsonl"))
    yield "winogrande", WINOGRANDE, [winogrande(row) for row in rows], []
    text = {"output_type": "loglikelihood", "doc_to_text": "{{context}}", "doc_to_target": " {{continuation}}"}
    text |= {"metric_list": [{"metric": "perplexity"}, {"metric": "acc"}]}
    yield "lambada", text, lines(Path("lambada/lambada_openai_test.jsonl")), []
    yield "questions", QUESTION, lines(Path("naturalquestions_open/NQ-open.dev.jsonl")), []
    rows = [
        {"question": r["question"], "answer": list(r["mc1_targets"])[:1]}
        for r in lines(Path("truthfulqa/mc_task_v0.jsonl"))
    ]
    yield "truthful", {**QUESTION, "num_fewshot": 0}, rows, []
    rolling = {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{page[:3000]}}"}
    rolling |= {"metric_list": [{"metric": m} for m in ("bits_per_byte", "word_perplexity", "byte_perplexity")]}
    yield "wikitext", rolling, lines(Path("wikitext103/valid.jsonl")), []
    pairs = [json.loads(line) for line in (EVALS / "blimp/blimp_60_per_paradigm.jsonl").read_text("utf-8").splitlines()]
    for paradigm in sorted({p["UID"] for p in pairs})[:8]:
        chosen = [p for p in pairs if p["UID"] == paradigm][:DOCUMENTS]
        sides = {"doc_to_text": "", "doc_to_choice": "{{[sentence_good, sentence_bad]}}", "doc_to_target": 0}
        yield f"blimp_{paradigm}", {**CHOICE, **sides}, chosen, []


WINOGRANDE = {
    "output_type": "multiple_choice",
    "doc_to_text": "label",
    "doc_to_choice": "{{[first, second]}}",
    "doc_to_target": "rest",
    "metric_list": [{"metric": "acc"}],
}


def winogrande(row: dict[str, Any]) -> dict[str, Any]:
    before, after = row["sentence"].split("_", 1)
    filled = {"first": before + row["option1"], "second": before + row["option2"]}
    return {**filled, "rest": after.strip(), "label": int(row["answer"]) - 1}


def bigbench(row: dict[str, Any]) -> dict[str, Any]:
    choices = list(row["target_scores"])
    scores = [float(row["target_scores"][c]) for c in choices]
    return {"text": f"Q: {row['input']}\nA: ", "choices": choices, "gold": scores.index(max(scores))}


def write(folder: Path) -> list[str]:
    folder.mkdir()
    names = []
    for name, task, documents, examples in real_tasks():
        files = {"test": str(folder / f"{name}.jsonl")}
        write_rows(folder / f"{name}.jsonl", documents)
        if examples:
            files["dev"] = str(folder / f"{name}-dev.jsonl")
            write_rows(folder / f"{name}-dev.jsonl", examples)
        data = {"dataset_path": "json", "dataset_kwargs": {"data_files": files}, "test_split": "test"}
        (folder / f"{name}.yaml").write_text(json.dumps({"task": name, **data, **task}))
        names.append(name)
    return names


def plain_lm(rung: Rung) -> Any:
    """A model for the harness that shares nothing with ours but weights and tokenizer: every request alone, no cache."""
    from lm_eval.api.model import TemplateLM
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    model, tokenizer, context = rung.reader.model, rung.tokenizer, rung.context

    def log_probs(tokens: list[int]) -> torch.Tensor:
        with torch.no_grad():
            return torch.log_softmax(model.hidden(torch.tensor([tokens]))[0] @ model.embedding.t(), dim=-1)

    class Plain(TemplateLM):
        eot_token_id = tokenizer.eos

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_how: Any) -> list[int]:
            return tokenizer.encode([string])[0].tolist()

        def _loglikelihood_tokens(self, requests: Any, **_how: Any) -> list[tuple[float, bool]]:
            return [self.alone(before, after) for _, before, after in requests]

        def alone(self, before: list[int], after: list[int]) -> tuple[float, bool]:
            if len(after) > context:  # in windows, the first behind what comes before
                windows = get_rolling_token_windows(after, before[-1], context, 1)
                parts = [self.alone(*make_disjoint_window(pair)) for pair in windows]
                return sum(p for p, _ in parts), all(g for _, g in parts)
            seen, target = [*before, *after][-(context + 1) :][:-1], torch.tensor(after)
            rows = log_probs(seen)[-len(after) :]
            return float(rows.gather(1, target[:, None]).sum()), bool((rows.argmax(-1) == target).all())

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
            pairs = (get_rolling_token_windows(self.tok_encode(r.args[0]), tokenizer.eos, context, 1) for r in requests)
            return [sum(self.alone(*make_disjoint_window(pair))[0] for pair in windows) for windows in pairs]

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
            return [self.continued(*r.args) for r in requests]

        def continued(self, prompt: str, options: dict[str, Any]) -> str:
            count = min(options["max_gen_toks"], context // 2)
            tokens, new = self.tok_encode(prompt)[-(context - count) :], []
            for _ in range(count):
                new.append(int(log_probs([*tokens, *new])[-1].argmax()))
                text = tokenizer.to_bytes(new).decode(errors="replace")
                if stop := next((s for s in options["until"] if s in text), None):
                    return text[: text.index(stop)]
                if new[-1] == tokenizer.eos:
                    break
            return tokenizer.to_bytes(new).decode(errors="replace")

    return Plain()


@pytest.mark.timeout(900)
def test_sixty_real_tasks_equal_the_harness(tiny_run: Path, tmp_path: Path) -> None:
    import lm_eval
    from lm_eval.tasks import TaskManager

    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    names = write(tmp_path / "tasks")
    rung, store = open_rung(tiny_run), Store(folder=tmp_path / "answers")
    compiled = compile_tasks(names, str(tmp_path / "tasks"), tmp_path / "bundles", Prompting(limit=DOCUMENTS))
    assert not compiled.skipped and len(compiled.bundles) >= 60
    for bundle in compiled.bundles.values():
        score_missing([rung], bundle, store)
    answers = {name: store.answers(rung.sha256, bundle) or [] for name, bundle in compiled.bundles.items()}
    found = {(s.task, s.metric): s for s in scored(compiled, answers).scores}

    manager = TaskManager(include_path=str(tmp_path / "tasks"), include_defaults=False)
    want = lm_eval.simple_evaluate(
        plain_lm(rung), tasks=names, task_manager=manager, limit=DOCUMENTS, bootstrap_iters=1000
    )["results"]
    kinds = {compiled.bundles[n].requests[0].kind for n in names}
    assert kinds == {"loglikelihood", "loglikelihood_rolling", "generate_until"}
    for task, values in want.items():
        for key, value in values.items():
            metric, comma, _ = key.partition(",")
            if comma and not metric.endswith("_stderr"):
                assert found[task, metric].value == pytest.approx(value, rel=1e-6, abs=1e-6), (task, metric)
                stderr = values[f"{metric}_stderr,none"]
                if stderr != "N/A" and found[task, metric].stderr is not None and metric != "perplexity":
                    assert found[task, metric].stderr == pytest.approx(stderr, rel=1e-6, abs=1e-6), (task, metric)

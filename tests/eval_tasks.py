"""Small own-written evaluation tasks of every type, as lm-evaluation-harness YAML over local JSON lines."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROWS = [
    {
        "question": f"Which of the things numbered {i} and {i + 1} is {word}?",
        "options": ["the first one", "the second", "both of them, as it seems"],
        "gold": i % 3,
        "passage": f"Passage {i // 3} speaks of things.\nThey are many, and some are {i // 3 * 7} years old.",
        "sentence": f"The thing numbered {i} is",
    }
    for i, word in enumerate(["red", "old", "large", "lost", "true", "cold", "quick", "round", "dear", "late"] * 2)
]

CHOICE = {
    "output_type": "multiple_choice",
    "doc_to_text": "Question: {{question}}\nAnswer:",
    "doc_to_choice": "options",
    "doc_to_target": "gold",
    "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
}
TASKS: dict[str, dict[str, Any]] = {
    "colours": CHOICE,
    "colours_shots": {
        **CHOICE,
        "fewshot_split": "test",
        "num_fewshot": 2,
        "description": "Choose well.\n\n",
    },
    "passages": {**CHOICE, "doc_to_text": "{{passage}}\n\n\nQuestion: {{question}} "},
    "prior": {**CHOICE, "metric_list": [{"metric": "acc_mutual_info"}, {"metric": "brier_score"}]},
    "sentences": {
        "output_type": "loglikelihood",
        "doc_to_text": "{{sentence}}",
        "doc_to_target": " {{options[gold]}}",
        "metric_list": [{"metric": "perplexity"}, {"metric": "acc"}],
    },
    "prose": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{passage * 4}}",
        "metric_list": [{"metric": "bits_per_byte"}, {"metric": "word_perplexity"}],
    },
    "short": {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{options[gold]}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 8, "do_sample": False},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    },
}


def write_tasks(folder: Path, rows: list[dict[str, Any]] = ROWS, tasks: dict[str, dict[str, Any]] = TASKS) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(folder / "rows.jsonl", rows)
    for name, task in tasks.items():
        data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}}}
        (folder / f"{name}.yaml").write_text(json.dumps({"task": name, "test_split": "test", **data, **task}))
    return folder


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")

"""The evaluation items of lm-evaluation-harness tasks as plain text: what the training text must not hold."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gopher.errors import UsageError

OWN_TASKS = Path(__file__).parent / "tasks"


@dataclass(frozen=True, kw_only=True)
class Item:
    task: str
    doc_id: int
    text: str  # the question as it is put without examples, and its right answer


@dataclass(frozen=True, kw_only=True)
class Skipped:
    task: str
    reason: str


def items_of(
    tasks: Sequence[str], tasks_path: str | None, say: Callable[[str], None]
) -> tuple[list[Item], list[Skipped]]:
    """Items of the named tasks, found in `tasks_path`, among our own or in the harness; tasks without data are named."""
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it remarks on every task
    folders = [str(OWN_TASKS), *([tasks_path] if tasks_path else [])]
    manager = TaskManager(include_path=folders, include_defaults=False)
    if any(task not in manager.all_tasks for task in tasks):
        say("reading the harness's list of tasks")
        manager = TaskManager(include_path=folders)
    items, skipped = [], []
    for name in tasks:
        try:
            for task, found in manager.load([name])["tasks"].items():
                items += [Item(task=task, doc_id=i, text=text) for i, text in enumerate(texts_of(found))]
        except Exception as error:  # data of any task may fail in its own way, and the others go on
            skipped.append(Skipped(task=name, reason=" ".join(str(error).split()) or type(error).__name__))
    if not items:
        reasons = "; ".join(f"{s.task}: {s.reason}" for s in skipped) or "no task is named"
        raise UsageError(f"no evaluation items to look for ({reasons}); name tasks whose data is here")
    return items, skipped


def texts_of(task: Any) -> list[str]:
    return [f"{task.doc_to_text(doc)} {answer_of(task, doc)}".strip() for doc in task.eval_docs]


def answer_of(task: Any, doc: Any) -> str:
    """The right answer as text; of several the first."""
    target = task.doc_to_target(doc)
    target = target[0] if isinstance(target, list) and target else target
    choices = task.doc_to_choice(doc) if task.OUTPUT_TYPE == "multiple_choice" else None
    known = isinstance(target, int) and choices and 0 <= target < len(choices)
    return str(choices[target]) if known and choices else str(target)

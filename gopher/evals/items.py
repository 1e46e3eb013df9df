"""Tasks of lm-evaluation-harness by name, and their items as plain text.

Tasks are looked for in the user's folder, among our own, and only then among the harness's thousands.
"""

import contextlib
import io
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gopher.errors import UsageError
from gopher.evals.cures import cured, may_need_hub, offline_if_unreachable
from gopher.evals.names import harness_index

OWN_TASKS = Path(__file__).parent / "tasks"
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Item:
    task: str
    doc_id: int
    text: str  # the question as it is put without examples, and its right answer


@dataclass(frozen=True, kw_only=True)
class Skipped:
    task: str
    reason: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Tasks:
    """The tasks that could be loaded, by name, and the others with the reason."""

    found: dict[str, Any]
    skipped: list[Skipped]
    groups: dict[str, Any] = field(default_factory=dict)  # the harness's groups among the names


def tasks_named(names: Sequence[str], folder: str | None, say: Say, kept: Path | None = None) -> Tasks:
    """The named tasks; the list of the harness's thousands is remembered in the folder `kept`.

    Raises `UsageError` when not one of them can be loaded.
    """
    from lm_eval.tasks import TaskManager

    for talkative in ("lm_eval", "huggingface_hub"):  # they remark on every task and on every try
        logging.getLogger(talkative).setLevel(logging.ERROR)
    folders = [str(OWN_TASKS), *([folder] if folder else [])]
    manager = TaskManager(include_path=folders, include_defaults=False)
    if any(may_need_hub(manager.task_index.get(name)) for name in names):
        offline_if_unreachable()
    if any(name not in manager.all_tasks for name in names):
        manager._index = harness_index(kept, say) | manager._index  # what a new manager takes many seconds to find out
        manager._all_tasks = sorted(manager._index)
    found: dict[str, Any] = {}
    groups: dict[str, Any] = {}
    skipped = []
    for name in names:
        try:
            with quiet():
                loaded = manager.load([name])
            found |= loaded["tasks"]
            groups |= loaded["groups"]
        except Exception as error:  # data of any task may fail in its own way, and the others go on
            skipped.append(
                Skipped(task=name, reason=cured(name, error, manager.task_index.get(name), manager.all_tasks))
            )
    if not found:
        reasons = "; ".join(f"{s.task}: {s.reason}" for s in skipped) or "no task is named"
        raise UsageError(f"no evaluation task can be read ({reasons}); name tasks whose data is here")
    return Tasks(found=found, skipped=skipped, groups=groups)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the bars and prints of the harness and its data library: standard output is for results."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def items_of(tasks: Tasks) -> list[Item]:
    return [
        Item(task=name, doc_id=i, text=f"{question_of(task, doc)} {answer_of(task, doc)}".strip())
        for name, task in tasks.found.items()
        for i, doc in enumerate(task.eval_docs)
    ]


def question_of(task: Any, doc: Any) -> str:
    """The question as text; where the options stand before a common end (Winogrande), the right one."""
    text = task.doc_to_text(doc)
    return str(task.doc_to_choice(doc)[text]) if task.multiple_input and isinstance(text, int) else str(text)


def answer_of(task: Any, doc: Any) -> str:
    """The right answer as text; of several the first."""
    target = task.doc_to_target(doc)
    target = target[0] if isinstance(target, list) and target else target
    choices = task.doc_to_choice(doc) if task.OUTPUT_TYPE == "multiple_choice" else None
    known = isinstance(target, int) and choices and 0 <= target < len(choices)
    return str(choices[target]) if known and choices else str(target)

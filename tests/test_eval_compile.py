"""A bundle's key is the same in every process and another one for every change that reaches a prompt, code included; no
prompt holds its own answer."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from eval_tasks import CHOICE, ROWS, write_rows, write_tasks

from gopher.evals.compile import Compiled, Prompting, compile_tasks
from gopher.evals.items import tasks_named
from gopher.evals.names import harness_index, index_path

pytestmark = pytest.mark.filterwarnings("ignore")  # the harness and its data library warn of many things
CODED = """task: coded
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: !function words.text
doc_to_choice: options
doc_to_target: gold
process_results: !function words.result
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 1}}
"""
WORDS = """WORD = "Question: "

def text(doc):
    return WORD + doc["question"]
"""
RESULT = """
def result(doc, results):
    return {"acc": 1.0}
"""
KEY = """import sys, warnings
warnings.simplefilter("ignore")
from pathlib import Path
from gopher.evals.compile import Prompting, compile_tasks
made = compile_tasks(["coded"], sys.argv[1], Path(sys.argv[2]), Prompting())
print(made.bundles["coded"].key, made.rendered, made.bundles["coded"].requests[0].context)
"""


@pytest.fixture(autouse=True)
def offline() -> None:
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}


def coded(folder: Path, words: str = WORDS + RESULT) -> Path:
    folder.mkdir(exist_ok=True)
    write_rows(folder / "rows.jsonl", ROWS[:4])
    (folder / "coded.yaml").write_text(CODED.format(rows=folder / "rows.jsonl"))
    (folder / "words.py").write_text(words)
    return folder


def in_another_process(folder: Path, bundles: Path) -> tuple[str, int, str]:
    """(key, bundles rendered, first prompt)"""
    done = subprocess.run(
        [sys.executable, "-c", KEY, str(folder), str(bundles)], capture_output=True, text=True, check=True
    )
    key, rendered, prompt = done.stdout.strip().split(" ", 2)
    return key, int(rendered), prompt


def test_code_has_one_key_in_every_process_and_another_when_a_constant_changes(tmp_path: Path) -> None:
    folder = coded(tmp_path / "tasks")
    first, again = (in_another_process(folder, tmp_path / "b") for _ in range(2))
    assert first[:2] == (again[0], 1) and again[1] == 0
    moved = in_another_process(coded(tmp_path / "elsewhere"), tmp_path / "c")
    assert moved[0] == first[0]
    coded(folder, (WORDS + RESULT).replace("Question", "Frage"))
    changed = in_another_process(folder, tmp_path / "b")
    assert changed[0] != first[0] and changed[1] == 1 and changed[2].startswith("Frage: ")


def compiled(tmp_path: Path, name: str, task: dict, **how: object) -> Compiled:
    folder = write_tasks(tmp_path / "tasks", tasks={name: task})
    return compile_tasks([name], str(folder), tmp_path / "b", Prompting(**how))  # type: ignore[arg-type]


def test_a_seed_that_chooses_nothing_and_words_about_answers_keep_the_key(tmp_path: Path) -> None:
    keys = {compiled(tmp_path, "t", CHOICE, seed=seed).bundles["t"].key for seed in (1, 2)}
    assert len(keys) == 1
    shots = {**CHOICE, "fewshot_split": "test", "num_fewshot": 2}
    assert len({compiled(tmp_path, "t", shots, seed=seed).bundles["t"].key for seed in (1, 2)}) == 2


def test_a_seed_is_part_of_the_key_only_where_examples_are_drawn(tmp_path: Path) -> None:
    first = {**CHOICE, "fewshot_split": "test", "num_fewshot": 2, "fewshot_config": {"sampler": "first_n"}}
    assert len({compiled(tmp_path, "t", first, seed=seed).bundles["t"].key for seed in (1, 2)}) == 1


def test_a_choice_without_right_options_is_skipped_with_the_reason(tmp_path: Path) -> None:
    folder, rows = tmp_path / "tasks", [{**row, "gold": str(row["gold"])} for row in ROWS]
    said: list[str] = []
    write_tasks(folder, rows=rows, tasks={"t": CHOICE})
    for _ in range(2):
        made = compile_tasks(["t"], str(folder), tmp_path / "b", Prompting(), said.append)
        assert made.bundles == {} and "no right option in 20 of 20 items" in made.skipped[0].reason
    right = [{**row, "gold": row["options"][row["gold"]] if i < 12 else "none"} for i, row in enumerate(ROWS)]
    write_tasks(folder, rows=right, tasks={"t": CHOICE})
    made = compile_tasks(["t"], str(folder), tmp_path / "b", Prompting(), said.append)
    assert made.bundles and any("8 of 20 items, which count as wrong" in line for line in said)


def test_the_harness_list_of_names_is_remembered(tmp_path: Path) -> None:
    """What it says is used without a reading of the harness's files; names of a user's folder come before it."""
    folder = write_tasks(tmp_path / "tasks", tasks={"colours": CHOICE})
    theirs = write_tasks(tmp_path / "theirs", tasks={"theirs": CHOICE})
    rows = {"theirs": ["TASK", str(theirs / "theirs.yaml"), []], "colours": ["TASK", str(tmp_path / "gone.yaml"), []]}
    index_path(tmp_path).write_text(json.dumps(rows))
    said: list[str] = []
    found = tasks_named(["colours", "theirs", "unknown"], str(folder), said.append, tmp_path)
    assert list(found.found) == ["colours", "theirs"] and [s.task for s in found.skipped] == ["unknown"]
    assert said == []


@pytest.mark.slow
def test_the_harness_list_of_names_is_read_where_it_is_not_kept(tmp_path: Path) -> None:
    index_path(tmp_path).write_text("{")
    said: list[str] = []
    found = [harness_index(tmp_path, said.append) for _ in range(2)]
    assert len(found[0]) > 10_000 and found[0] == found[1] and len(said) == 1


def test_a_field_that_documents_share_is_part_of_the_key(tmp_path: Path) -> None:
    plain = compiled(tmp_path, "t", CHOICE).bundles["t"]
    named = compiled(tmp_path, "t", {**CHOICE, "metadata": {"version": 1, "cluster": "gold"}}).bundles["t"]
    assert plain.key != named.key
    assert len({r.cluster for r in plain.requests}) == 7 and len({r.cluster for r in named.requests}) == 3


def test_examples_are_never_the_question_itself(tmp_path: Path) -> None:
    """Without examples of its own a task is refused shots; with its test documents named the harness leaves out the item."""
    refused = compiled(tmp_path, "t", CHOICE, shots=4)
    assert not refused.bundles and "answers would stand in the prompts" in refused.skipped[0].reason
    made = compiled(tmp_path, "t", {**CHOICE, "fewshot_split": "test"}, shots=4).bundles["t"]
    for request in made.requests:
        assert request.context.count(ROWS[request.doc_id]["question"]) == 1


def test_race_with_shots_holds_no_answer_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from test_own_tasks import FILES

    row = FILES["race/test_high.jsonl"][0]
    rows = [{**row, "article": f"Tom has {i} boats."} for i in range(6)]
    (tmp_path / "race").mkdir()
    (tmp_path / "race" / "test_high.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    monkeypatch.setenv("GOPHER_EVAL_DATA", str(tmp_path))
    bundle = compile_tasks(["race_h"], None, tmp_path / "b", Prompting(shots=4)).bundles["race_h"]
    assert bundle.n_docs == 12 and len({r.cluster for r in bundle.requests}) == 6
    for request in bundle.requests:
        own = request.context.rsplit("Tom has", 1)[1]
        assert request.context.count(f"Tom has{own}") == 1

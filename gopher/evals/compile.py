"""Tasks of lm-evaluation-harness rendered into request bundles, once for all checkpoints.

Rendering is what the harness does again for every checkpoint (52 five-shot documents a second); here it is done when
the task's configuration, its documents, the shots or the seed have changed, and the key of the bundle says so.
"""

import hashlib
import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from gopher.errors import GopherError
from gopher.evals.bundle import GENERATE, LIKELIHOOD, ROLLING, Bundle, Request, read_bundle, write_bundle
from gopher.evals.exam import FEWSHOT_SEED
from gopher.evals.items import Say, Skipped, quiet, tasks_named
from gopher.identity import content_hash

PROMPT_VERSION = 2  # raise it when the same task begins to be rendered otherwise

NO_OPTION = -100  # the harness's own
KINDS = (LIKELIHOOD, ROLLING, GENERATE)
SHARED_TEXTS = ("cluster", "article", "passage", "story")  # fields of documents that several questions are asked about


# of a task's configuration: where its documents lie (they are hashed themselves), and what is made of the answers
NOT_ASKED = ("dataset_kwargs", "metadata", "process_results", "filter_list")


@dataclass(frozen=True, kw_only=True)
class Prompting:
    """How documents become prompts."""

    shots: int | None = None  # None: as the task says
    seed: int = FEWSHOT_SEED  # of the choice of examples
    limit: int | None = None  # documents per task


@dataclass(frozen=True, kw_only=True, eq=False)
class Compiled:
    """Bundles by task name, the loaded tasks and groups that their metrics need, and what could not be read."""

    bundles: dict[str, Bundle]
    tasks: dict[str, Any]
    groups: dict[str, Any]
    skipped: list[Skipped]
    rendered: int  # bundles that had to be made


def compile_tasks(
    names: Sequence[str], tasks_path: str | None, folder: Path, prompting: Prompting, say: Say = lambda message: None
) -> Compiled:
    """The bundles of the named tasks and groups, from `folder` where it has them. Raises `UsageError` when none can be read."""
    loaded = tasks_named(names, tasks_path, say, folder)
    bundles, skipped, rendered = {}, list(loaded.skipped), 0
    for name, task in loaded.found.items():
        try:
            set_prompting(task, prompting)
            made_of = origin(task, prompting)
            key = content_hash(made_of)[:16]
            bundle = read_bundle(folder, name, key)
            if bundle is None:
                say(f"rendering {name}")
                bundle = Bundle(task=name, key=key, made_of=made_of, requests=render(task, prompting, say))
                write_bundle(folder, bundle)
                rendered += 1
        except OSError:
            raise  # no place to write: not the task's fault
        except Exception as error:  # a task's templates and code may fail in any way, and the others go on
            skipped.append(Skipped(task=name, reason=one_line(error)))
            continue
        bundles[name] = bundle
    tasks = {name: loaded.found[name] for name in bundles}
    return Compiled(bundles=bundles, tasks=tasks, groups=loaded.groups, skipped=skipped, rendered=rendered)


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def set_prompting(task: Any, prompting: Prompting) -> None:
    """Shots and seed by the harness's own rules: a task that fixes 0 shots keeps them.

    Raises `GopherError` where examples would come from the very documents that are asked about.
    """
    fixed = task.get_config("num_fewshot")
    if prompting.shots is not None and fixed != 0:
        task.set_config(key="num_fewshot", value=prompting.shots)
    elif fixed is None:
        task.set_config(key="num_fewshot", value=0)
    if task.get_config("num_fewshot") and not has_examples(task):
        raise GopherError(
            f"{task.config.task} has no examples but its test documents, so answers would stand in the prompts; "
            "name a fewshot_split in its YAML, or set evals.shots=0"
        )
    task.set_fewshot_seed(seed=prompting.seed)


def has_examples(task: Any) -> bool:
    """Whether few-shot examples come from elsewhere than the test documents, or the task says that these are meant."""
    named = task.fewshot_cfg.split is not None or task.fewshot_cfg.samples is not None
    return bool(named or task.has_training_docs() or task.has_validation_docs())


def origin(task: Any, prompting: Prompting) -> dict[str, Any]:
    """What the task's requests are made of: equal for equal requests, on any machine."""
    import lm_eval

    config = {k: v for k, v in asdict(task.config).items() if k not in NOT_ASKED}
    shots = task.get_config("num_fewshot")
    examples = task.fewshot_docs() if shots else []
    return {
        "task": task.config.task,
        "config": sha256_of([config, code_hash(type(task))]),
        "cluster": cluster_field(task),
        "documents": documents_hash(task, prompting.limit),
        "examples": sha256_of([dict(doc) for doc in examples or []]),
        "shots": shots,
        "seed": prompting.seed if shots and draws(task) else None,  # chooses examples, and nothing else
        "limit": prompting.limit,
        "prompt_version": PROMPT_VERSION,
        "harness": lm_eval.__version__,
    }


def draws(task: Any) -> bool:
    """Whether examples are drawn by seed; the harness has one other way, to take the first."""
    from lm_eval.api.samplers import FirstNSampler

    return type(getattr(task, "sampler", None)) is not FirstNSampler


def documents_hash(task: Any, limit: int | None) -> str:
    return sha256_of([dict(doc) for _, doc in task.doc_iterator(limit=limit)])


def sha256_of(value: Any) -> str:
    return hashlib.sha256(json.dumps(plain(value), sort_keys=True, default=str).encode()).hexdigest()


def plain(value: Any) -> Any:
    """`value` with code as the hash of what it says: its address differs from process to process."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return code_hash(value) if callable(value) else value


def code_hash(code: Any) -> str:
    """The name of a function or class with the hash of the whole file that it is in: constants and helpers count too."""
    if isinstance(code, partial):
        return f"{code_hash(code.func)} {sha256_of([code.args, code.keywords])}"
    try:
        text = Path(inspect.getfile(code)).read_bytes()
    except (TypeError, OSError):  # built in, or from no file: its name is all there is
        text = b""
    name = getattr(code, "__qualname__", type(code).__qualname__)
    return f"{name} {hashlib.sha256(text).hexdigest()}"


def render(task: Any, prompting: Prompting, say: Say) -> tuple[Request, ...]:
    """Every request of the task, in the order of its documents. Raises `GopherError` where no item has a right option."""
    with quiet():
        task.build_all_requests(limit=prompting.limit)
    out = []
    targets = {doc_id: target_of(task, doc) for doc_id, doc in task.doc_iterator(limit=prompting.limit)}
    check_targets(task, [target for target in targets.values() if target is not None], say)
    golds = {doc_id: target if known(target) else None for doc_id, target in targets.items()}
    for instance in task.instances:
        if instance.request_type not in KINDS or len(instance.args) > 2:
            raise GopherError(f"{task.config.task} asks for {instance.request_type}, which is not text in, text out")
        first, second = (*instance.args, "")[:2]
        generates = instance.request_type == GENERATE
        out += [
            Request(
                doc_id=instance.doc_id,
                idx=instance.idx,
                kind=instance.request_type,
                context=str(first),
                continuation="" if generates else str(second),
                options=json.dumps(second, sort_keys=True) if generates else "",
                gold=golds[instance.doc_id],
                cluster=cluster_of(task, instance.doc),
            )
        ] * (instance.repeats or 1)
    return tuple(out)


def target_of(task: Any, doc: Any) -> Any:
    """What a multiple choice names as right, as the harness reads it: an idx, `NO_OPTION` where it fits none, or several idxs."""
    if task.OUTPUT_TYPE != "multiple_choice":
        return None
    gold = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    choices = task.doc_to_choice(doc)
    if isinstance(gold, str):
        return choices.index(gold) if gold in choices else NO_OPTION
    if isinstance(gold, int) and not isinstance(gold, bool):
        return gold if 0 <= gold < len(choices) else NO_OPTION
    return gold


def known(target: Any) -> bool:
    """Whether there is one right option."""
    return isinstance(target, int) and not isinstance(target, bool) and target != NO_OPTION


def check_targets(task: Any, targets: Sequence[Any], say: Say) -> None:
    """Raises `GopherError` where every item would silently score 0. A task that reads its answers itself may know better."""
    lost = sum(type(target) is int and target == NO_OPTION for target in targets)
    if not lost or callable(task.config.process_results):
        return
    problem = f"{task.config.task} has no right option in {lost} of {len(targets)} items"
    if lost == len(targets):
        raise GopherError(f"{problem}; its doc_to_target must give the option's number or its text: check it")
    say(f"{problem}, which count as wrong; check its doc_to_target")


def cluster_field(task: Any) -> str | None:
    """The field of documents that the task's metadata names as what they share."""
    metadata = task.config.metadata
    return metadata.get("cluster") if isinstance(metadata, dict) else None


def cluster_of(task: Any, doc: Any) -> str:
    """A short name of what the document shares with others: the field that the task's metadata names, or a usual one."""
    field = cluster_field(task) or next((f for f in SHARED_TEXTS if isinstance(doc, dict) and f in doc), None)
    return sha256_of(doc[field])[:12] if field and field in doc else ""

"""Task scores that a sweep logged to MLflow, as the figures need them: value, standard error, chance, the untrained model."""

from collections.abc import Mapping
from typing import Any

from analysis.points import integer, newest, positive, training_runs
from analysis.published import published
from analysis.tasks import HEADLINES, TaskScore, base, is_lower_better

# the families of Rae et al. 2021, section 4, by how tasks are called
CATEGORIES = {
    "Language modelling": ("pile_", "wikitext", "pg19", "c4", "curation", "dialect"),
    "Reading comprehension": ("race", "lambada"),
    "Fact checking": ("fever", "multifc", "vitaminc"),
    "Question answering": ("naturalquestions", "nq_open", "triviaqa", "truthful"),
    "Common sense": ("hellaswag", "piqa", "winogrande", "siqa", "social_iqa", "boolq", "arc_"),
    "MMLU": ("mmlu",),
    "BIG-bench": ("bigbench",),
    "Grammar": ("blimp",),
    "Toxicity and bias": ("real_toxicity", "toxicity", "unprompted", "civil", "gender", "winogender", "sentiment", "crows"),
}  # fmt: skip
OTHER, LIKE = "Other tasks", "like "


def category_of(task: str, family: str | None = None) -> str:
    """The paper's family of a task: by the category that it names itself, else by its name, or that of a member ("like mmlu_law")."""
    if family and not family.startswith(LIKE):
        return known_family(family.lower()) or family
    return known_family(task.lower()) or known_family((family or "").removeprefix(LIKE).lower()) or OTHER


def known_family(name: str) -> str | None:
    """By the beginning of the name, else by that of one of its words: "mmlu_law", "our_mmlu", "MMLU"."""
    words = [name, *(name[i + 1 :] for i, letter in enumerate(name) if letter == "_")]
    families = {own.lower(): own for own in CATEGORIES}
    found = (next((own for own, begins in CATEGORIES.items() if word.startswith(begins)), None) for word in words)
    return families.get(name.replace("_", " ")) or next(filter(None, found), None)


def scores_from_mlflow(tracking_uri: str, experiment: str) -> list[TaskScore]:
    """Every shown score of every training run, at each step it was logged at. Raises as `analysis.points.training_runs`."""
    runs = training_runs(tracking_uri, experiment)
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=tracking_uri)
    return [score for run in runs for score in scores_of_run(client, run)]


def scores_of_run(client: Any, run: Any) -> list[TaskScore]:
    """Scores of one training run; `eval/<task>.<metric>` with `_stderr` beside it."""
    tags, params = run.data.tags, run.data.params
    size = positive(params.get("model.n_params_nonemb"))
    if size is None:
        return []
    out = []
    for task, metric in shown(run.data.metrics):
        name = f"eval/{task}.{metric}"
        errors = newest(client, run.info.run_id, f"{name}_stderr") if f"{name}_stderr" in run.data.metrics else {}
        chance = run.data.metrics.get(f"eval/{task}.chance") if base(metric) == "acc" else None
        way = metric.partition("-")[2]
        items = run.data.metrics.get(f"eval/{task}.items-{way}" if way else f"eval/{task}.items")
        out += [
            TaskScore(
                task=task,
                category=category_of(task, tags.get(f"eval.family.{task}")),
                metric=metric,
                rung=tags.get("rung") or params.get("rung", "?"),
                run_id=tags.get("trial.id", run.info.run_id),
                params=size,
                step=step,
                value=value,
                stderr=errors.get(step),
                n=None if items is None else int(items),
                chance=chance,
                is_group=f"eval/{task}.members" in run.data.metrics,
                higher_is_better=not is_lower_better(metric),
                seed=integer(params.get("seed", tags.get("seed"))),
                untrained=step == 0,
            )
            for step, value in newest(client, run.info.run_id, name).items()
        ]
    return out


def shown(metrics: Mapping[str, float]) -> list[tuple[str, str]]:
    """(task, metric) pairs among the logged metrics that are worth a picture: `HEADLINES`, and those with a published score."""
    names = [name.removeprefix("eval/").rpartition(".") for name in sorted(metrics) if name.startswith("eval/")]
    pairs = [(task, metric) for task, _, metric in names if base(metric) in HEADLINES or published(task, metric)]
    return [(t, m) for t, m in pairs if not (m == "bpb" and (t, "bits_per_byte") in pairs)]  # one number by two names

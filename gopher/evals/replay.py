"""Lets lm-evaluation-harness evaluate stored answers: tasks whose requests are already rendered, a model that only remembers."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from gopher.evals.answers import Answer
from gopher.evals.bundle import GENERATE, ROLLING, Bundle, Request

Place = tuple[str, int, int, str]  # task, doc_id, idx, kind


class Rendered:
    """Called in place of a task's own rendering: its instances from a bundle."""

    def __init__(self, task: Any, bundle: Bundle) -> None:
        self.task, self.bundle = task, bundle

    def __call__(self, **_how: Any) -> None:
        docs = dict(self.task.doc_iterator(limit=self.bundle.made_of["limit"]))
        repeats: defaultdict[tuple[int, int, str], list[Request]] = defaultdict(list)
        for request in self.bundle.requests:
            repeats[request.doc_id, request.idx, request.kind].append(request)
        self.task._instances = [
            Instance(
                request_type=requests[0].kind,
                doc=docs[doc_id],
                arguments=arguments(requests[0]),
                idx=idx,
                metadata=(self.bundle.task, doc_id, len(requests)),
            )
            for (doc_id, idx, _), requests in repeats.items()
        ]


def arguments(request: Request) -> tuple[Any, ...]:
    if request.kind == ROLLING:
        return (request.context,)
    return (request.context, json.loads(request.options) if request.kind == GENERATE else request.continuation)


class Replay(LM):
    """Gives to every instance the answers that are stored for it, in their order where it is repeated."""

    def __init__(self, bundles: Mapping[str, Bundle], answers: Mapping[str, Sequence[Answer]]) -> None:
        super().__init__()
        self._left: defaultdict[Place, list[Answer]] = defaultdict(list)
        for name, bundle in bundles.items():
            for request, answer in zip(bundle.requests, answers[name], strict=True):
                self._left[name, request.doc_id, request.idx, request.kind].append(answer)

    def _next(self, request: Any) -> Answer:
        return self._left[request.task_name, request.doc_id, request.idx, request.request_type].pop(0)

    def loglikelihood(self, requests: Any) -> list[tuple[float, bool]]:
        return [(a.nats, bool(a.is_greedy)) for a in map(self._next, requests)]

    def loglikelihood_rolling(self, requests: Any) -> list[float]:
        return [a.nats for a in map(self._next, requests)]

    def generate_until(self, requests: Any) -> list[str]:
        return [a.text or "" for a in map(self._next, requests)]

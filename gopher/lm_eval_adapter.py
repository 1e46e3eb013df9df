"""A checkpoint as a model of lm-evaluation-harness; its own command line, with this model known by the name `gopher`:

    python -m gopher.lm_eval_adapter --model gopher --model_args checkpoint=RUN_DIR --tasks TASK --include_path DIR

The harness has no way to name models from outside, so the module registers ours and hands over; all of its options
work. From Python: `lm_eval.simple_evaluate(GopherLM(checkpoint=RUN_DIR), ...)`. Never use its `--use_cache`: its key
does not hold the model, so a second checkpoint gets the first one's answers.
"""

from collections import defaultdict
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model

from gopher.completion import complete
from gopher.dialogue import USER, Dialogue
from gopher.errors import UsageError
from gopher.evals.answers import how
from gopher.evals.reasoning import Mode, answers, thought_through
from gopher.inference import Rung, open_rung
from gopher.sampling import Sampling
from gopher.score import score_documents, score_long


@register_model("gopher")
class GopherLM(TemplateLM):
    """Scores and continues text with one checkpoint. An empty context is the end of the document before."""

    def __init__(
        self,
        checkpoint: Any = None,
        step: int | None = None,
        device: str | None = None,
        seed: int = 0,
        batch_tokens: int | None = None,
        batch_size: Any = None,
        max_batch_size: Any = None,
        rung: Rung | None = None,
        think: bool = False,
        chains: int = 1,
        dialogue: bool = False,
    ) -> None:
        """`batch_size` and `max_batch_size` are taken because the harness passes them; batches are by tokens here.

        Prompt modes: `think` asks for a chain of thought before the answer, `chains` of them vote on generated answers
        (self-consistency), `dialogue` puts the dialogue prompt of `gopher chat` before what is asked.
        """
        super().__init__()
        usable = device if device and torch.cuda.is_available() else "cpu"  # the harness says cuda wherever it runs
        self.rung = rung or open_rung(str(checkpoint), step=step, device=usable)
        self.seed, self.batch_tokens = int(seed), int(batch_tokens) if batch_tokens else None
        if think and dialogue:
            raise UsageError("think and dialogue are both set; choose one prompt mode")
        self.mode = Mode(think=bool(think), chains=int(chains), seed=self.seed, thought_tokens=self.max_length // 4)
        self.dialogue = bool(dialogue)

    @property
    def eot_token_id(self) -> int:
        return self.rung.tokenizer.eos

    @property
    def max_length(self) -> int:
        return self.rung.context

    @property
    def tokenizer_name(self) -> str:
        return self.rung.tokenizer.sha256

    @property
    def device(self) -> torch.device:
        return self.rung.reader.device

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_kwargs: Any) -> list[int]:
        return self.rung.tokenizer.encode([string])[0].tolist()

    def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """As the harness does it; with `think` every context is thought through once, whatever its options."""
        if not self.mode.think:
            return super().loglikelihood(requests, disable_tqdm=disable_tqdm)
        contexts = list(dict.fromkeys(request.args[0] for request in requests))
        concluded = dict(
            zip(contexts, thought_through(self.rung, contexts, replace(self.mode, chains=1))[0], strict=True)
        )
        pairs = [(concluded[request.args[0]], request.args[1]) for request in requests]
        encoded = [((context, rest), *self._encode_pair(context, rest)) for context, rest in pairs]
        return self._loglikelihood_tokens(encoded)

    def _loglikelihood_tokens(self, requests: Any, **_kwargs: Any) -> list[tuple[float, bool]]:
        pairs = [(context, continuation) for _, context, continuation in requests]
        found = score_long(self.rung.reader, pairs, batch_tokens=self.batch_tokens)
        return [(s.log_prob, s.is_greedy) for s in found]

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        """Windows of a whole context without overlap, as the harness's own models do it."""
        texts = [request.args[0] for request in requests]
        documents = [tokens.astype(np.int64) for tokens in self.rung.tokenizer.encode(texts)]
        found = score_documents(
            self.rung.reader,
            documents,
            first_token=self.eot_token_id,
            stride=self.max_length,
            batch_tokens=self.batch_tokens,
        )
        return [s.log_prob for s in found]

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        """Continuations; at most half the context is new, so that a prompt has the other half."""
        groups: defaultdict[tuple[Any, ...], list[int]] = defaultdict(list)
        for i, request in enumerate(requests):
            groups[how(request.args[1], self.max_length // 2)].append(i)
        texts = [""] * len(requests)
        for (until, count, temperature, top_p), members in groups.items():
            sampling = Sampling(temperature=temperature, top_p=top_p, seed=self.seed)
            prompts = [requests[i].args[0] for i in members]
            for i, text in zip(members, self.generated(prompts, until, count, sampling), strict=True):
                texts[i] = text
        return texts

    def generated(self, prompts: list[str], until: tuple[str, ...], count: int, sampling: Sampling) -> list[str]:
        """What is said behind each prompt, in the model's prompt mode."""
        if self.mode.think:
            return [answer.text for answer in answers(self.rung, prompts, replace(self.mode, answer_tokens=count))]
        if self.dialogue:
            room = self.max_length - count
            prompts = [Dialogue().said(USER, prompt.strip()).prompt(self.rung, room).text for prompt in prompts]
            until = (*until, f"\n{USER}:")
        made = complete(self.rung, prompts, max_new_tokens=count, until=until, sampling=sampling)
        return [completion.text for completion in made]


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()

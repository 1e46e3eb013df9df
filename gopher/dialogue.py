"""A rung as a partner in conversation: a written beginning of a dialogue turns continuing text into answering.

The paper prompts its model the same way (Rae et al. 2021, section on dialogue); the words here are our own. Small rungs
answer badly, and this shows it plainly: nothing is filtered and nothing is tuned.
"""

from dataclasses import dataclass, field, replace

from gopher.completion import Completion, Draft, complete
from gopher.inference import Rung
from gopher.sampling import Sampling

USER, MODEL = "User", "Gopher"
DESCRIPTION = (
    "The following is a conversation between Gopher, a language model that helps with questions of all kinds, and a person "
    "called User. Gopher is polite and brief, says so when it does not know something, never insults anybody, and has "
    "neither a body nor opinions about politics."
)
EXAMPLES = (
    (USER, "Hello Gopher, can you tell me why leaves are green?"),
    (
        MODEL,
        "Gladly. Leaves hold a pigment called chlorophyll, which takes in red and blue light and gives back green.",
    ),
    (USER, "What will the weather be like here tomorrow?"),
    (MODEL, "I cannot know that: I see neither where you are nor any forecast. A local weather service will help you."),
)
Turn = tuple[str, str]  # who, what


@dataclass(frozen=True, kw_only=True)
class Dialogue:
    """What was said so far. `prompted` puts the description and the examples before it, otherwise the turns stand alone."""

    turns: tuple[Turn, ...] = ()
    prompted: bool = True

    def said(self, who: str, text: str) -> "Dialogue":
        return replace(self, turns=(*self.turns, (who, text)))

    def prompt(self, rung: Rung, room: int) -> "Prompt":
        """The text that the model continues, in at most `room` tokens: the oldest turns go first, the description last."""
        turns = [*(EXAMPLES if self.prompted else ()), *self.turns]
        for dropped in range(len(turns)):
            text = written(turns[dropped:], DESCRIPTION if self.prompted else "")
            if len(rung.tokenizer.encode([text])[0]) <= room:
                return Prompt(text=text, dropped_turns=dropped)
        return Prompt(text=written(turns[-1:], ""), dropped_turns=len(turns) - 1, described=False)


@dataclass(frozen=True, kw_only=True)
class Prompt:
    text: str
    dropped_turns: int  # examples included
    described: bool = True


def written(turns: list[Turn], description: str) -> str:
    """The dialogue as text that ends where the model is to speak."""
    lines = [f"{who}: {what}" for who, what in turns]
    return "\n\n".join([*([description] if description else []), *lines, f"{MODEL}:"])


@dataclass(frozen=True, kw_only=True)
class Reply:
    text: str
    dialogue: Dialogue  # with the question and this reply
    prompt: Prompt = field(repr=False)
    cut_tokens: int  # of the prompt's beginning, when even the last question was too long


def reply(
    rung: Rung,
    dialogue: Dialogue,
    question: str,
    sampling: Sampling,
    max_new_tokens: int,
    draft: Draft | None = None,
) -> Reply:
    """The model's answer to `question`; it ends where the model would let anybody else speak."""
    asked = dialogue.said(USER, question.strip())
    prompt = asked.prompt(rung, rung.context - max_new_tokens)
    stops = (f"\n{USER}:", f"\n{MODEL}:", "\n\n")
    made: Completion = complete(
        rung, [prompt.text], max_new_tokens=max_new_tokens, until=stops, sampling=sampling, draft=draft
    )[0]
    text = made.text.strip()
    return Reply(text=text, dialogue=asked.said(MODEL, text), prompt=prompt, cut_tokens=made.cut_tokens)

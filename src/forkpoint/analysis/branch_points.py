"""Where to branch: one position of high and one of low entropy in each sampled answer."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from forkpoint.analysis.continuations import Place
from forkpoint.analysis.pattern import token_index, top_tokens
from forkpoint.randomness import stream
from forkpoint.types import Completion, Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A sampled answer with what the model says of its tokens."""

    prompt: Prompt
    number: int
    """Among all answers; names the random streams."""
    sample: int
    completion: Completion
    """With entropies and the most likely tokens."""

    def place(self, position: int, kind: Literal["high", "low"], alternatives: int) -> Place:
        """What to try at a position: the sampled token, then the likeliest others."""
        one = self.completion
        assert one.top_ids is not None
        assert one.top_logprobs is not None
        sampled = int(one.token_ids[position])
        top = zip(one.top_ids[position].tolist(), one.top_logprobs[position].tolist(), strict=True)
        others = [(token, p) for token, p in top if token != sampled and p > -math.inf]
        return Place(
            prompt=self.prompt,
            answer=one,
            position=position,
            choices=((sampled, float(one.logprobs[position])), *others[:alternatives]),
            serial=2 * self.number + (kind == "low"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """The two positions of an answer that are measured."""

    answer: Answer
    high: int
    low: int


def draw_pairs(answers: Sequence[Answer], *, keep_fraction: float, seed: int) -> list[Pair]:
    """A high and a low position of each answer that has both, in a random order of answers.

    High: among the ``keep_fraction`` of all tokens with the highest entropy, by the rule ``top``.
    Within an answer each position of a kind is as likely as the others.
    """
    lengths = [len(answer.completion) for answer in answers]
    index = token_index([str(answer.number) for answer in answers], lengths)
    entropies = [answer.completion.entropies for answer in answers]
    entropies_T = np.concatenate([e for e in entropies if e is not None])
    top_T = top_tokens(entropies_T, index, keep_fraction)
    pairs = []
    for answer, top in zip(answers, np.split(top_T, np.cumsum(lengths)[:-1]), strict=True):
        if top.any() and not top.all():
            generator = stream(seed, "branch positions", answer.number)
            high, low = (int(generator.choice(np.flatnonzero(x))) for x in (top, ~top))
            pairs.append(Pair(answer=answer, high=high, low=low))
    order = stream(seed, "branch order").permutation(len(pairs))
    return [pairs[i] for i in order]

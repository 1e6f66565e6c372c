"""Where to branch: one position of high and one of low entropy in each sampled answer."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

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

    @property
    def entropies_T(self) -> np.ndarray:
        assert self.completion.entropies is not None
        return self.completion.entropies


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
    index = token_index([str(a.number) for a in answers], [len(a.completion) for a in answers])
    entropies_T = np.concatenate([a.entropies_T for a in answers])
    top_T = top_tokens(entropies_T, index, keep_fraction)
    ends = np.cumsum([len(a.completion) for a in answers])[:-1]
    pairs = []
    for answer, top in zip(answers, np.split(top_T, ends), strict=True):
        if top.any() and not top.all():
            generator = stream(seed, "branch positions", answer.number)
            high, low = (int(generator.choice(np.flatnonzero(x))) for x in (top, ~top))
            pairs.append(Pair(answer=answer, high=high, low=low))
    order = stream(seed, "branch order").permutation(len(pairs))
    return [pairs[i] for i in order]


def place_of(answer: Answer, position: int, kind: str, alternatives: int) -> Place:
    """What to try at a position: the kept token, then the likeliest others."""
    completion = answer.completion
    assert completion.top_ids is not None
    assert completion.top_logprobs is not None
    kept = int(completion.token_ids[position])
    top = zip(
        completion.top_ids[position].tolist(),
        completion.top_logprobs[position].tolist(),
        strict=True,
    )
    others = [(token, logprob) for token, logprob in top if token != kept and logprob > -math.inf]
    return Place(
        prompt=answer.prompt,
        prefix_ids=tuple(completion.token_ids[:position].tolist()),
        prefix_logprobs=tuple(completion.logprobs[:position].tolist()),
        choices=((kept, float(completion.logprobs[position])), *others[:alternatives]),
        serial=2 * answer.number + (kind == "low"),
    )

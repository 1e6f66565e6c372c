"""Answers that begin alike: a prefix of a sampled answer, one more token, and n endings drawn."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np

from forkpoint.analysis.gap import Branch
from forkpoint.sampling import SampleRequest, SamplingParts
from forkpoint.sampling.base import SamplingSettings
from forkpoint.types import Completion, FinishReason, Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A position of a sampled answer and the tokens to be tried there."""

    prompt: Prompt
    answer: Completion
    position: int
    choices: tuple[tuple[int, float], ...]
    """(token id, ln p) to follow the tokens before the position; the sampled one first."""
    serial: int
    """Names the random stream; unique in the experiment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Continuer:
    """Draws the rest of answers and rewards them whole, for ``branching``."""

    parts: SamplingParts
    settings: SamplingSettings
    """``max_new_tokens`` is what a whole answer may have."""
    continuations: int

    def worst_case(self, place: Place) -> int:
        """Tokens that ``follow`` may sample at most."""
        return len(self._open(place)) * self.continuations * self._room(place)

    def follow(
        self, place: Place, should_stop: Callable[[], bool]
    ) -> tuple[tuple[Branch, ...], int]:
        """A branch for each of the place's choices, and how many tokens were sampled.

        Branches are drawn from streams of their own: independent, as the unbiased gap needs it. A
        choice that ends the answer, by an end-of-sequence token or for want of room, needs no draw.

        Raises:
            Interrupted: ``should_stop()`` turned true; nothing is kept.
        """
        endings = self._draw(place, should_stop)
        answers = [
            [self._answer(place, choice, ending) for ending in endings.get(number, (None,))]
            for number, choice in enumerate(place.choices)
        ]
        pairs = [(place.prompt.problem, answer) for branch in answers for answer in branch]
        scores = iter(self.parts.scorer.score(pairs, should_stop))
        branches = tuple(
            Branch(
                rewards=tuple(
                    score.reward
                    for score in islice(scores, len(branch))
                    if score.reward is not None
                ),
                certain=number not in endings,
            )
            for number, branch in enumerate(answers)
        )
        return branches, sum(len(ending) for drawn in endings.values() for ending in drawn)

    def _draw(self, place: Place, should_stop: Callable[[], bool]) -> dict[int, list[Completion]]:
        """Number of the choice -> its n endings, for the choices that do not end the answer."""
        n, numbers = self.continuations, self._open(place)
        prefix = (*place.prompt.token_ids, *place.answer.token_ids[: place.position].tolist())
        requests = [
            SampleRequest(
                prompt=Prompt(
                    problem=place.prompt.problem, token_ids=(*prefix, place.choices[number][0])
                ),
                serial=place.serial,
                sample=number * n + i,
            )
            for number in numbers
            for i in range(n)
        ]
        if not requests:
            return {}
        settings = replace(self.settings, max_new_tokens=self._room(place))
        endings = self.parts.engine.sample(requests, settings, should_stop)
        return {number: endings[i * n : (i + 1) * n] for i, number in enumerate(numbers)}

    def _answer(
        self, place: Place, choice: tuple[int, float], ending: Completion | None
    ) -> Completion:
        """The whole answer: the tokens before the position, the choice, and what was drawn."""
        answer, position, (token, logprob) = place.answer, place.position, choice
        ids = [answer.token_ids[:position], np.array([token])]
        logprobs = [answer.logprobs[:position], np.array([logprob])]
        if ending is not None:
            ids.append(ending.token_ids)
            logprobs.append(ending.logprobs)
            reason = ending.finish_reason
        else:
            stopped = token in self.parts.loaded.eos_ids
            reason = FinishReason.STOP if stopped else FinishReason.LENGTH
        token_ids = np.concatenate(ids)
        return Completion(
            token_ids=token_ids,
            logprobs=np.concatenate(logprobs),
            entropies=None,
            finish_reason=reason,
            text=self.parts.loaded.tokenizer.decode(token_ids.tolist(), skip_special_tokens=True),
        )

    def _open(self, place: Place) -> list[int]:
        """The numbers of the choices that do not end the answer."""
        eos_ids = self.parts.loaded.eos_ids if self._room(place) else [t for t, _ in place.choices]
        return [n for n, (token, _) in enumerate(place.choices) if token not in eos_ids]

    def _room(self, place: Place) -> int:
        """Tokens that may follow the position."""
        return max(0, self.settings.max_new_tokens - place.position - 1)

"""Answers that begin alike: a prefix of a sampled answer, one more token, and n endings drawn."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from forkpoint.analysis.gap import Branch
from forkpoint.sampling import SampleRequest, SamplingParts
from forkpoint.sampling.base import SamplingSettings
from forkpoint.types import Completion, FinishReason, Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A position of a sampled answer and the tokens to be tried there."""

    prompt: Prompt
    prefix_ids: tuple[int, ...]
    """The answer's tokens before the position."""
    prefix_logprobs: tuple[float, ...]
    choices: tuple[tuple[int, float], ...]
    """(token id, ln p) to follow; the kept token first."""
    serial: int
    """Names the random stream; unique in the experiment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Continuer:
    """Draws the rest of answers and rewards them whole. Made and eaten by ``branching``."""

    parts: SamplingParts
    settings: SamplingSettings
    """``max_new_tokens`` is what a whole answer may have."""
    continuations: int

    def worst_case(self, place: Place) -> int:
        """Tokens that ``follow`` may sample at most."""
        open_choices = [token for token, _ in place.choices if not self._ends(place, token)]
        return len(open_choices) * self.continuations * self._room(place)

    def follow(
        self, place: Place, should_stop: Callable[[], bool]
    ) -> tuple[tuple[Branch, ...], int]:
        """A branch for each of the place's choices, and how many tokens were sampled.

        Branches are drawn from streams of their own: independent, as the unbiased gap needs it. A
        choice that ends the answer, by an end-of-sequence token or for want of room, needs no draw.

        Raises:
            Interrupted: ``should_stop()`` turned true; nothing is kept.
        """
        drawn = self._draw(place, should_stop)
        answers = [
            (number, answer)
            for number, (token, logprob) in enumerate(place.choices)
            for answer in self._answers(place, token, logprob, drawn.get(number))
        ]
        pairs = [(place.prompt.problem, answer) for _, answer in answers]
        scores = self.parts.scorer.score(pairs, should_stop)
        branches = tuple(
            Branch(
                rewards=tuple(
                    score.reward
                    for (other, _), score in zip(answers, scores, strict=True)
                    if other == number and score.reward is not None
                ),
                certain=number not in drawn,
            )
            for number in range(len(place.choices))
        )
        return branches, sum(len(c.token_ids) for endings in drawn.values() for c in endings)

    def _draw(
        self, place: Place, should_stop: Callable[[], bool]
    ) -> dict[int, Sequence[Completion]]:
        """Number of the choice -> its n endings, for the choices that do not end the answer."""
        n = self.continuations
        numbers = [i for i, (t, _) in enumerate(place.choices) if not self._ends(place, t)]
        requests = [
            SampleRequest(
                prompt=self._prompt(place, place.choices[number][0]),
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

    def _prompt(self, place: Place, token: int) -> Prompt:
        ids = (*place.prompt.token_ids, *place.prefix_ids, token)
        return Prompt(problem=place.prompt.problem, token_ids=ids)

    def _answers(
        self, place: Place, token: int, logprob: float, endings: Sequence[Completion] | None
    ) -> list[Completion]:
        """Whole answers: prefix, token, ending."""
        ids, logprobs = (*place.prefix_ids, token), (*place.prefix_logprobs, logprob)
        if endings is None:
            stopped = token in self.parts.loaded.eos_ids
            reason = FinishReason.STOP if stopped else FinishReason.LENGTH
            return [self._answer(ids, logprobs, reason)]
        return [
            self._answer((*ids, *e.token_ids), (*logprobs, *e.logprobs), e.finish_reason)
            for e in endings
        ]

    def _answer(
        self, ids: tuple[int, ...], logprobs: tuple[float, ...], reason: FinishReason
    ) -> Completion:
        text = self.parts.loaded.tokenizer.decode(ids, skip_special_tokens=True)
        return Completion(
            token_ids=np.array(ids),
            logprobs=np.array(logprobs),
            entropies=None,
            finish_reason=reason,
            text=text,
        )

    def _room(self, place: Place) -> int:
        """Tokens that may follow the position."""
        return self.settings.max_new_tokens - len(place.prefix_ids) - 1

    def _ends(self, place: Place, token: int) -> bool:
        return token in self.parts.loaded.eos_ids or self._room(place) < 1

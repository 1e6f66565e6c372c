"""Stored completions as a model sees them: their tokens' numbers by teacher forcing."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import tee

from forkpoint.config import RunConfig
from forkpoint.errors import Interrupted
from forkpoint.policy.load import LoadedModel
from forkpoint.policy.teacher import score_completions
from forkpoint.runs.completions import StoredCompletion
from forkpoint.sampling.pieces import TokenPieces


def rescored(
    loaded: LoadedModel,
    rows: Iterable[StoredCompletion],
    config: RunConfig,
    *,
    top_k: int,
    should_stop: Callable[[], bool],
) -> Iterator[StoredCompletion]:
    """The rows in order, with log-probabilities, entropies, alternatives and pieces by the model.

    A few passes' worth of rows are in memory.

    Args:
        top_k: alternatives of each token; 0: none are stored.

    Raises:
        Interrupted: ``should_stop()`` turned true.
    """
    pieces = TokenPieces(loaded.tokenizer)
    rows, given = tee(rows)
    scored = score_completions(
        loaded.model,
        ((row.prompt_token_ids, row.completion) for row in given),
        temperature=config.rollout.temperature,
        top_k=max(top_k, 1),
        max_tokens=config.training.micro_batch_tokens,
    )
    for row, completion in zip(rows, scored, strict=True):
        if should_stop():
            raise Interrupted("stopped while scoring")
        if not top_k:
            completion = replace(completion, top_ids=None, top_logprobs=None)
        yield replace(row, completion=completion, pieces=pieces(completion.token_ids.tolist()))

"""Teacher-forced scores against one plain forward pass per completion with all of its logits."""

from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from forkpoint.entropy import reference_entropy, reference_logprob
from forkpoint.errors import DataError, NumericalError
from forkpoint.policy import teacher as score_module
from forkpoint.policy.teacher import score_completions
from forkpoint.types import Completion, FinishReason
from tests.conftest import VOCABULARY, tiny_model

MODEL = tiny_model()

ids = st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=12)
pairs = st.lists(st.tuples(ids, ids), min_size=1, max_size=7)


Pair: TypeAlias = tuple[Sequence[int], Sequence[int]]


def completion(ids: Sequence[int]) -> Completion:
    unknown: Any = [np.nan] * len(ids)
    return Completion(
        token_ids=np.array(ids, np.int32),
        logprobs=unknown,
        entropies=None,
        finish_reason=FinishReason.STOP,
        text="kept",
    )


def plainly(model: Any, pair: Pair, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """ln p and H of a completion's tokens from the whole sequence's logits, in float64."""
    prompt, completion = pair
    with torch.no_grad():
        logits_LV = model(input_ids=torch.tensor([[*prompt, *completion]])).logits[0].double()
    logits_TV = logits_LV[len(prompt) - 1 : -1]
    token_ids_T = torch.tensor(completion)
    return (
        reference_logprob(logits_TV, token_ids_T, temperature),
        reference_entropy(logits_TV, temperature),
    )


def score(
    given: Sequence[Pair], *, model: Any = MODEL, temperature: float = 1.0, **settings: int
) -> list[Completion]:
    settings = {"top_k": 3, "max_tokens": 64, **settings}
    pairs = ((prompt, completion(ids)) for prompt, ids in given)
    return list(score_completions(model, pairs, temperature=temperature, **settings))


def assert_plain(found: Completion, model: Any, pair: Pair, temperature: float) -> None:
    logprobs_T, entropies_T = plainly(model, pair, temperature)
    np.testing.assert_allclose(found.logprobs, logprobs_T, atol=2e-5, rtol=1e-5)
    np.testing.assert_allclose(found.entropies, entropies_T, atol=2e-5, rtol=1e-5)


@given(given=pairs, max_tokens=st.integers(1, 80), temperature=st.sampled_from([0.5, 1.0, 1.7]))
def test_scores_are_those_of_a_plain_forward(
    given: list[Pair], max_tokens: int, temperature: float
) -> None:
    found = score(given, temperature=temperature, max_tokens=max_tokens)
    assert len(found) == len(given)
    for one, pair in zip(found, given, strict=True):
        assert_plain(one, MODEL, pair, temperature)


@given(given=pairs, seed=st.integers(0, 99))
def test_order_does_not_matter(given: list[Pair], seed: int) -> None:
    order = np.random.default_rng(seed).permutation(len(given))
    forth = score(given)
    for index, found in zip(order, score([given[i] for i in order]), strict=True):
        np.testing.assert_allclose(found.entropies, forth[index].entropies, atol=2e-5)
        np.testing.assert_allclose(found.logprobs, forth[index].logprobs, atol=2e-5)


def test_alternatives_are_the_most_likely_tokens_descending() -> None:
    pair = ([3, 4, 5], [6, 7, 8, 9])
    (found,) = score([pair], top_k=4, temperature=2.0)
    with torch.no_grad():
        logits_TV = MODEL(input_ids=torch.tensor([[*pair[0], *pair[1]]])).logits[0, 2:-1].double()
    logp_TV = (logits_TV / 2.0).log_softmax(-1)
    order_TK = logp_TV.argsort(-1, descending=True)[:, :4]
    assert found.top_ids.tolist() == order_TK.tolist()
    np.testing.assert_allclose(found.top_logprobs, logp_TV.gather(-1, order_TK), atol=2e-5)
    assert found.top_ids.dtype == np.int32
    assert {x.dtype for x in (found.logprobs, found.entropies, found.top_logprobs)} == {
        np.dtype(np.float32)
    }


def test_more_alternatives_than_words_gives_them_all() -> None:
    (found,) = score([([1], [2, 3])], top_k=1000)
    assert [sorted(row) for row in found.top_ids.tolist()] == [list(range(VOCABULARY))] * 2
    np.testing.assert_allclose(np.exp(found.top_logprobs.astype(float)).sum(-1), 1, atol=1e-5)


def test_small_chunks_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    given = [([1, 2], list(range(2, 12))), ([3], [4, 5, 6])]
    whole = score(given)
    monkeypatch.setattr(score_module, "LOGITS_ELEMENTS", 5 * VOCABULARY)
    monkeypatch.setattr(score_module, "CACHE_ELEMENTS", 2 * VOCABULARY)
    for a, b in zip(whole, score(given), strict=True):
        np.testing.assert_allclose(a.entropies, b.entropies, atol=2e-5)
        assert a.top_ids.tolist() == b.top_ids.tolist()


def test_a_completion_without_tokens_keeps_its_place() -> None:
    found = score([([1, 2], []), ([1, 2], [3]), ([4], [])], top_k=2)
    assert [len(f.entropies) for f in found] == [0, 1, 0]
    assert [f.top_ids.shape for f in found] == [(0, 2), (1, 2), (0, 2)]
    assert_plain(found[1], MODEL, ([1, 2], [3]), 1.0)
    assert [len(f.entropies) for f in score([([1], [])])] == [0]


def test_a_prompt_without_tokens_is_refused() -> None:
    with pytest.raises(DataError, match="a prompt without tokens"):
        score([([1], [2]), ([], [2])])


def test_pairs_are_read_as_they_are_needed() -> None:
    taken = 0

    def endless() -> Iterator[tuple[list[int], Completion]]:
        nonlocal taken
        while True:
            taken += 1
            yield [1, 2, 3], completion([4, 5, 6, 7, 8])

    stream = score_completions(MODEL, endless(), temperature=1.0, top_k=1, max_tokens=16)
    next(stream)
    # a window of LOOKAHEAD * 16 tokens is LOOKAHEAD * 2 pairs of 8
    assert taken == 2 * score_module.LOOKAHEAD


def test_a_pass_holds_no_more_than_was_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    model, sizes = tiny_model(), []
    hook = model.base_model.register_forward_pre_hook(
        lambda _, __, kwargs: sizes.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    lengths = [3, 30, 4, 12, 5, 9, 2, 50]
    score([([1] * 3, [2] * length) for length in lengths], model=model, max_tokens=40)
    hook.remove()
    sizes = sizes[1:]  # the first pass checks the head
    # [3 + 50 - 1] alone is larger than 40; every other pass fits
    assert max(sizes) == 52
    assert [size for size in sizes if size > 40] == [52]
    assert sum(sizes) >= sum(length + 2 for length in lengths)


class _Capped(torch.nn.Module):
    """A model that caps its logits after the head, as Gemma 2 does."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = tiny_model()
        self.base_model, self.device = self.inner.base_model, self.inner.device
        self.config, self.dtype = self.inner.config, self.inner.dtype

    def get_output_embeddings(self) -> Any:
        return self.inner.get_output_embeddings()

    def get_input_embeddings(self) -> Any:
        return self.inner.get_input_embeddings()

    def forward(self, **inputs: Any) -> Any:
        output = self.inner(**inputs)
        output.logits = 2 * torch.tanh(output.logits / 2)
        return output


def test_a_model_that_changes_its_logits_is_asked_for_them() -> None:
    model, pair = _Capped(), ([3, 4], [5, 6, 7])
    (found,) = score([pair], model=model)
    assert_plain(found, model, pair, 1.0)
    assert np.abs(found.entropies - score([pair])[0].entropies).max() > 0.01


def test_logits_that_are_not_finite_are_refused() -> None:
    model = tiny_model()
    with torch.no_grad():
        model.get_input_embeddings().weight[7] = float("nan")
    with pytest.raises(NumericalError, match="not finite"):
        score([([1, 7], [2])], model=model)

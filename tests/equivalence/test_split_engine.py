"""The in-process engine at two temperatures: what it draws, and what it records of it."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from scipy import stats

from forkpoint.config.stages import ModelConfig
from forkpoint.entropy import reference_entropy, reference_logprob
from forkpoint.policy.load import LoadedModel, load_model
from forkpoint.sampling import transformers as module
from forkpoint.sampling.base import SampleRequest, SplitTemperature
from forkpoint.types import Completion
from tests.conftest import VOCABULARY
from tests.equivalence.test_engine import prompts_of, requests_of, sample


@pytest.fixture(params=["tiny", "lab"])
def policy(request: pytest.FixtureRequest, loaded: LoadedModel) -> LoadedModel:
    return loaded if request.param == "tiny" else load_model(ModelConfig(path="lab:game"))


def split(threshold: float, above: float, below: float) -> SplitTemperature:
    return SplitTemperature(threshold_nats=threshold, above=above, below=below)


def predictions(loaded: LoadedModel, request: SampleRequest, made: Completion) -> torch.Tensor:
    """Logits [T, V] of each of its positions: one sequence alone, no cache and no padding."""
    ids = torch.tensor([*request.prompt.token_ids, *made.token_ids])
    with torch.no_grad():
        return loaded.model(input_ids=ids[None]).logits[0, len(request.prompt.token_ids) - 1 : -1]


def test_without_a_split_nothing_is_tempered(
    policy: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = requests_of(policy)
    plain = sample(policy, requests)
    monkeypatch.setattr(module, "split_logprobs", None)  # to call it is a TypeError
    assert sample(policy, requests, split=None) == plain
    with pytest.raises(TypeError):
        sample(policy, requests, split=split(0.5, 1.0, 1.0))


def test_both_at_1_is_plain_sampling_to_the_last_bit(policy: LoadedModel) -> None:
    requests = requests_of(policy)
    plain = sample(policy, requests, max_new_tokens=30)
    entropies = sorted(h for c in plain for h in c.entropies)
    middle = entropies[len(entropies) // 2]
    assert sample(policy, requests, max_new_tokens=30, split=split(middle, 1.0, 1.0)) == plain


@pytest.mark.parametrize("temperature", [0.3, 0.7, 1.3])
def test_both_at_one_temperature_is_sampling_at_it(policy: LoadedModel, temperature: float) -> None:
    requests = requests_of(policy)
    plain = sample(policy, requests, temperature=temperature)
    made = sample(policy, requests, split=split(0.4, temperature, temperature))
    for request, ours, theirs in zip(requests, made, plain, strict=True):
        assert ours.token_ids.tolist() == theirs.token_ids.tolist()
        assert ours.logprobs.tolist() == theirs.logprobs.tolist()
        assert ours.text == theirs.text
        assert ours.finish_reason is theirs.finish_reason
        # but the entropies are those that decide: at temperature 1
        expected = reference_entropy(predictions(policy, request, ours))
        assert ours.entropies == pytest.approx(expected.tolist(), abs=2e-5)


@pytest.mark.parametrize(("above", "below"), [(0.5, 1.4), (1.6, 0.6), (0.0, 1.0), (1.0, 0.0)])
def test_what_is_recorded_is_the_definition(
    policy: LoadedModel, above: float, below: float
) -> None:
    requests = requests_of(policy)
    seen = sorted(h for c in sample(policy, requests) for h in c.entropies)
    middle = seen[len(seen) // 3 : 2 * len(seen) // 3]
    # in the widest gap, so that rounding does not decide which side a token is on
    low, high = max(pairwise(middle), key=lambda ends: ends[1] - ends[0])
    threshold = (low + high) / 2
    made = sample(policy, requests, split=split(threshold, above, below))
    sides = set()
    for request, completion in zip(requests, made, strict=True):
        logits_TV = predictions(policy, request, completion)
        entropies_T = reference_entropy(logits_TV)
        assert completion.entropies == pytest.approx(entropies_T.tolist(), abs=2e-5)
        ids_T = torch.from_numpy(completion.token_ids).long()
        for position, entropy in enumerate(entropies_T.tolist()):
            if abs(entropy - threshold) < 1e-4:
                continue
            sides.add(entropy > threshold)
            temperature = above if entropy > threshold else below
            row, token = logits_TV[position : position + 1], ids_T[position : position + 1]
            if temperature == 0:
                assert token.item() == row.argmax().item()
                assert completion.logprobs[position] == 0.0
            else:
                expected = reference_logprob(row, token, temperature).item()
                assert completion.logprobs[position] == pytest.approx(expected, abs=5e-5)
    assert sides == {True, False}


def test_greedy_in_both_parts_is_greedy(policy: LoadedModel) -> None:
    requests = requests_of(policy, samples=1)
    made = sample(policy, requests, split=split(0.4, 0.0, 0.0), max_new_tokens=16)
    for request, completion in zip(requests, made, strict=True):
        ids = torch.tensor([request.prompt.token_ids])
        generated = policy.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=16, do_sample=False
        )
        assert completion.token_ids.tolist() == generated[0, ids.shape[1] :].tolist()
        assert set(completion.logprobs) == {0.0}


@pytest.mark.parametrize("is_fork", [True, False])
def test_tokens_come_as_often_as_their_tempered_probability(
    loaded: LoadedModel, is_fork: bool
) -> None:
    prompt, draws = prompts_of(loaded)[1], 3000
    with torch.no_grad():
        logits_V = loaded.model(input_ids=torch.tensor([prompt.token_ids])).logits[0, -1]
    entropy = reference_entropy(logits_V[None]).item()
    threshold = entropy - 0.01 if is_fork else entropy + 0.01
    requests = [SampleRequest(prompt=prompt, serial=0, sample=n) for n in range(draws)]
    made = sample(loaded, requests, max_new_tokens=1, split=split(threshold, 1.7, 0.6))
    expected_V = (logits_V.double() / (1.7 if is_fork else 0.6)).softmax(-1) * draws
    counts_V = torch.tensor([c.token_ids[0] for c in made]).bincount(minlength=VOCABULARY)
    often_V = expected_V >= 5  # the rest is one cell
    assert int(often_V.sum()) >= 4
    observed = [*counts_V[often_V].tolist(), int(counts_V[~often_V].sum())]
    expected = [*expected_V[often_V].tolist(), expected_V[~often_V].sum().item()]
    assert stats.chisquare(observed, expected).pvalue > 1e-3


# ---- how many rows at a time ---------------------------------------------------------------------


@pytest.mark.parametrize("elements", [1, 3 * VOCABULARY, 4 * VOCABULARY + 7])
def test_how_many_rows_are_drawn_at_a_time_changes_nothing(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch, elements: int
) -> None:
    settings: list[dict[str, Any]] = [{}, {"split": split(1.0, 0.7, 1.3)}]
    whole = [sample(loaded, requests_of(loaded), **changes) for changes in settings]
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", {"other": elements})
    assert [sample(loaded, requests_of(loaded), **changes) for changes in settings] == whole

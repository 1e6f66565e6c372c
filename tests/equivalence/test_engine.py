"""The in-process engine: what it records is what the trainer computes, and what it draws depends on
the request alone."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from scipy import stats

from forkpoint.batching import build_batch
from forkpoint.config.stages import ModelConfig
from forkpoint.entropy import reference_entropy, reference_logprob
from forkpoint.errors import Interrupted, NumericalError
from forkpoint.lab import GameWorld, draw_problem
from forkpoint.policy import PolicyModule
from forkpoint.policy.load import LoadedModel, load_model
from forkpoint.sampling.base import SampleRequest, SamplingSettings
from forkpoint.sampling.rows import PLAIN, Decoding
from forkpoint.sampling.transformers import TransformersEngine
from forkpoint.types import Completion, FinishReason, Group, Problem, Prompt, Rollout, Score
from tests.conftest import EOS, VOCABULARY

NEVER = 10**6
"""No token has this id."""
SETTINGS = SamplingSettings(max_new_tokens=12, temperature=1.0, seed=3, step=2)


def prompts_of(loaded: LoadedModel) -> list[Prompt]:
    """Five prompts of uneven lengths, two of them with the same tokens."""
    if loaded.model.config.vocab_size == VOCABULARY:
        generator = torch.Generator().manual_seed(1)
        lengths = [1, 7, 3, 12]
        rows = [torch.randint(2, VOCABULARY, (n,), generator=generator).tolist() for n in lengths]
    else:
        worlds = [GameWorld(numbers=n) for n in (2, 3, 4, 3)]
        texts = [
            draw_problem(world, seed=4, serial=n, split="held_out").prompt
            for n, world in enumerate(worlds)
        ]
        rows = [loaded.tokenizer(text)["input_ids"] for text in texts]
    rows.append(rows[1])
    return [
        Prompt(problem=Problem(id=f"p{n}", prompt=""), token_ids=tuple(row))
        for n, row in enumerate(rows)
    ]


def requests_of(loaded: LoadedModel, samples: int = 3) -> list[SampleRequest]:
    return [
        SampleRequest(prompt=prompt, serial=10 + serial, sample=sample)
        for serial, prompt in enumerate(prompts_of(loaded))
        for sample in range(samples)
    ]


def sample(
    loaded: LoadedModel,
    requests: Sequence[SampleRequest],
    batch_sequences: int = 512,
    decoding: Decoding = PLAIN,
    **changes: Any,
) -> list[Completion]:
    engine = TransformersEngine(loaded, decoding=decoding, batch_sequences=batch_sequences)
    return engine.sample(requests, dataclasses.replace(SETTINGS, **changes))


@pytest.fixture(params=["tiny", "lab"])
def policy(request: pytest.FixtureRequest, loaded: LoadedModel) -> LoadedModel:
    return loaded if request.param == "tiny" else load_model(ModelConfig(path="lab:game"))


@pytest.fixture
def passes(loaded: LoadedModel) -> Iterator[list[tuple[int, int]]]:
    """(rows, tokens) of every forward pass of the tiny model."""
    seen: list[tuple[int, int]] = []

    def note(module: Any, positional: Any, named: dict[str, Any]) -> None:
        seen.append(tuple(named["input_ids"].shape))

    handle = loaded.model.register_forward_pre_hook(note, with_kwargs=True)
    yield seen
    handle.remove()


# ---- what it records ----------------------------------------------------------------------------


def as_groups(requests: Sequence[SampleRequest], made: Sequence[Completion]) -> list[Group]:
    groups = []
    for serial in sorted({r.serial for r in requests}):
        mine = [(r, c) for r, c in zip(requests, made, strict=True) if r.serial == serial]
        rollouts = tuple(
            Rollout(completion=c, score=Score(reward=float(n == 0)))
            for n, (_, c) in enumerate(mine)
        )
        groups.append(Group(prompt=mine[0][0].prompt, serial=serial, rollouts_G=rollouts))
    return groups


@pytest.mark.parametrize("gradient", ["dense", "sparse"])
@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.3])
def test_captured_statistics_are_those_of_a_teacher_forced_pass(
    policy: LoadedModel, temperature: float, gradient: str
) -> None:
    requests = requests_of(policy)
    made = sample(policy, requests, temperature=temperature, max_new_tokens=40)
    assert len({len(c.token_ids) for c in made}) > 1
    batch = build_batch(as_groups(requests, made), advantage="grpo")
    module = PolicyModule(policy.model, gradient=gradient, temperature=temperature)
    every_T = torch.ones(batch.num_tokens, dtype=torch.bool)
    assert len(module.passes(batch, every_T, max_tokens=200)) > 1
    stats = module.annotate(batch, max_tokens=200)
    logprobs_T, entropies_T = stats.logprobs_R, stats.entropies_R
    assert batch.rollout_entropies_T is not None
    assert batch.rollout_entropies_T.max() > 0.3
    torch.testing.assert_close(batch.rollout_logprobs_T, logprobs_T, rtol=0, atol=2e-5)
    torch.testing.assert_close(batch.rollout_entropies_T, entropies_T, rtol=0, atol=2e-5)


@pytest.mark.parametrize("temperature", [0.7, 1.3])
def test_captured_statistics_are_the_definition(policy: LoadedModel, temperature: float) -> None:
    # one sequence alone, no cache and no padding, softmax in float64
    for request in requests_of(policy, samples=1):
        (made,) = sample(policy, [request], temperature=temperature)
        ids = torch.tensor([*request.prompt.token_ids, *made.token_ids])
        start = len(request.prompt.token_ids)
        with torch.no_grad():
            logits_RV = policy.model(input_ids=ids[None]).logits[0, start - 1 : -1]
        expected = reference_logprob(logits_RV, ids[start:], temperature)
        assert made.logprobs == pytest.approx(expected.tolist(), abs=2e-5)
        expected = reference_entropy(logits_RV, temperature)
        assert made.entropies == pytest.approx(expected.tolist(), abs=2e-5)


# ---- what its draws depend on -------------------------------------------------------------------


def assert_same(made: Sequence[Completion], expected: Sequence[Completion]) -> None:
    for ours, theirs in zip(made, expected, strict=True):
        assert ours.token_ids.tolist() == theirs.token_ids.tolist()
        assert ours.finish_reason is theirs.finish_reason
        assert ours.text == theirs.text
        assert ours.logprobs == pytest.approx(theirs.logprobs, abs=1e-5)
        assert ours.entropies == pytest.approx(theirs.entropies, abs=1e-5)


def test_a_request_is_answered_the_same_whatever_else_is_in_the_call(policy: LoadedModel) -> None:
    requests = requests_of(policy)
    alone = [sample(policy, [request])[0] for request in requests]
    assert len({tuple(c.token_ids) for c in alone}) > len(alone) // 2
    generator = torch.Generator().manual_seed(9)
    for batch_sequences in (2, 7, len(requests), 512):
        assert_same(sample(policy, requests, batch_sequences), alone)
        order = torch.randperm(len(requests), generator=generator).tolist()
        shuffled = sample(policy, [requests[i] for i in order], batch_sequences)
        assert_same(shuffled, [alone[i] for i in order])


def test_the_draws_have_a_name_and_no_hidden_state(loaded: LoadedModel) -> None:
    requests = requests_of(loaded)
    torch.manual_seed(0)
    first = sample(loaded, requests)
    before = torch.get_rng_state()
    again = sample(loaded, requests)
    assert torch.equal(torch.get_rng_state(), before)
    assert first == again
    changes: list[dict[str, Any]] = [{"seed": 4}, {"step": 3}, {"purpose": "evaluate"}]
    others = [sample(loaded, requests, **change) for change in changes]
    renamed = [dataclasses.replace(r, sample=r.sample + 3) for r in requests]
    others.append(sample(loaded, renamed))
    others.append(sample(loaded, [dataclasses.replace(r, serial=r.serial + 5) for r in requests]))
    texts = {tuple(tuple(c.token_ids) for c in made) for made in [first, *others]}
    assert len(texts) == 1 + len(others)


def test_a_larger_budget_goes_on_from_the_same_tokens(loaded: LoadedModel) -> None:
    requests = requests_of(loaded)
    for short, long in zip(
        sample(loaded, requests, max_new_tokens=4),
        sample(loaded, requests, max_new_tokens=12),
        strict=True,
    ):
        assert long.token_ids[:4].tolist() == short.token_ids.tolist()
        assert long.logprobs[:4] == pytest.approx(short.logprobs, abs=1e-6)


@pytest.mark.parametrize("temperature", [0.7, 1.3])
def test_first_tokens_come_as_often_as_their_probability(
    loaded: LoadedModel, temperature: float
) -> None:
    prompt, draws = prompts_of(loaded)[1], 3000
    requests = [SampleRequest(prompt=prompt, serial=0, sample=n) for n in range(draws)]
    made = sample(loaded, requests, max_new_tokens=1, temperature=temperature)
    with torch.no_grad():
        logits_V = loaded.model(input_ids=torch.tensor([prompt.token_ids])).logits[0, -1]
    expected_V = (logits_V.double() / temperature).softmax(-1) * draws
    counts_V = torch.tensor([c.token_ids[0] for c in made]).bincount(minlength=VOCABULARY)
    often_V = expected_V >= 5  # the rest is one cell
    assert int(often_V.sum()) >= 5
    observed = [*counts_V[often_V].tolist(), int(counts_V[~often_V].sum())]
    expected = [*expected_V[often_V].tolist(), expected_V[~often_V].sum().item()]
    assert stats.chisquare(observed, expected).pvalue > 1e-3


def test_near_temperature_zero_it_is_greedy(policy: LoadedModel) -> None:
    requests = requests_of(policy, samples=1)
    made = sample(policy, requests, temperature=1e-4, max_new_tokens=16)
    for request, completion in zip(requests, made, strict=True):
        ids = torch.tensor([request.prompt.token_ids])
        generated = policy.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=16, do_sample=False
        )
        assert completion.token_ids.tolist() == generated[0, ids.shape[1] :].tolist()


# ---- where a completion ends --------------------------------------------------------------------


def test_an_end_of_sequence_token_is_the_last_token(loaded: LoadedModel) -> None:
    # the same draws without any end: what comes after the first end is cut, and nothing else
    endless = dataclasses.replace(loaded, eos_ids=(NEVER,))
    requests = requests_of(loaded, samples=6)
    whole = sample(endless, requests)
    assert all(c.finish_reason is FinishReason.LENGTH for c in whole)
    assert all(len(c.token_ids) == 12 for c in whole)
    ends = (EOS, whole[0].token_ids[-1], whole[1].token_ids[5])
    made = sample(dataclasses.replace(loaded, eos_ids=ends), requests)
    for ours, uncut in zip(made, whole, strict=True):
        end = next((n for n, i in enumerate(uncut.token_ids) if i in ends), None)
        length = 12 if end is None else end + 1
        assert ours.token_ids.tolist() == uncut.token_ids[:length].tolist()
        assert ours.logprobs == pytest.approx(uncut.logprobs[:length], abs=1e-5)
        assert ours.finish_reason is (FinishReason.LENGTH if end is None else FinishReason.STOP)
        kept = [i for i in ours.token_ids if i != EOS]  # the tokenizer's special token
        assert ours.text == " ".join(f"n{i}" for i in kept)
    assert {c.finish_reason for c in made} == {FinishReason.STOP, FinishReason.LENGTH}


def test_an_end_at_the_last_place_of_the_budget_is_a_stop(loaded: LoadedModel) -> None:
    request = requests_of(loaded, samples=1)[3]
    (whole,) = sample(dataclasses.replace(loaded, eos_ids=(NEVER,)), [request])
    ids = whole.token_ids.tolist()
    place = max(n for n, i in enumerate(ids) if ids.index(i) == n)
    ending = dataclasses.replace(loaded, eos_ids=(whole.token_ids[place],))
    for budget, reason in ((place, FinishReason.LENGTH), (place + 1, FinishReason.STOP)):
        (made,) = sample(ending, [request], max_new_tokens=budget)
        assert made.token_ids.tolist() == ids[:budget]
        assert made.finish_reason is reason


def test_a_finished_row_leaves_the_batch(
    loaded: LoadedModel, passes: list[tuple[int, int]]
) -> None:
    likely = sample(dataclasses.replace(loaded, eos_ids=(NEVER,)), requests_of(loaded))
    ends = tuple(c.token_ids[n % 9] for n, c in enumerate(likely))
    passes.clear()
    requests = requests_of(loaded)
    made = sample(dataclasses.replace(loaded, eos_ids=ends), requests)
    lengths = [len(c.token_ids) for c in made]
    assert max(lengths) < 12  # all end, and then no further pass is made
    assert len(set(lengths)) > 2
    # 4 different prompts of at most 12 tokens; then a row of length n is read n - 1 times more
    alive = [sum(n > step for n in lengths) for step in range(1, max(lengths))]
    assert passes == [(4, 12), *((rows, 1) for rows in alive)]


def test_a_budget_of_one_token(loaded: LoadedModel, passes: list[tuple[int, int]]) -> None:
    made = sample(loaded, requests_of(loaded), max_new_tokens=1)
    assert passes == [(4, 12)]
    assert all(len(c.token_ids) == len(c.logprobs) == len(c.entropies) == 1 for c in made)
    first = [c.token_ids[:1].tolist() for c in sample(loaded, requests_of(loaded))]
    assert [c.token_ids.tolist() for c in made] == first


def test_nothing_asked_is_nothing_done(loaded: LoadedModel, passes: list[tuple[int, int]]) -> None:
    assert sample(loaded, []) == []
    assert passes == []


def test_says_what_it_is(loaded: LoadedModel) -> None:
    engine = TransformersEngine(loaded, decoding=PLAIN, batch_sequences=2)
    assert engine.captures_entropy
    assert engine.same_weights
    engine.close()  # the model stays the trainer's
    assert engine.sample(requests_of(loaded), SETTINGS) == sample(loaded, requests_of(loaded), 2)


# ---- what stops it ------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", [1, 4])
def test_a_stop_is_obeyed_before_the_next_token(
    loaded: LoadedModel, passes: list[tuple[int, int]], asked: int
) -> None:
    answers = iter([False] * (asked - 1) + [True])
    engine = TransformersEngine(loaded, decoding=PLAIN, batch_sequences=512)
    endless = dataclasses.replace(SETTINGS, max_new_tokens=50)
    with pytest.raises(Interrupted, match="while sampling"):
        engine.sample(requests_of(loaded), endless, lambda: next(answers))
    assert len(passes) == asked


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
@pytest.mark.parametrize("when", [0, 3])
def test_logits_that_are_not_finite_are_an_error(
    loaded: LoadedModel, number: float, when: int
) -> None:
    calls = iter(range(100))

    def spoil(module: Any, inputs: Any, output: Any) -> None:
        if next(calls) == when:
            output.logits[0, -1, 5] = number

    loaded.model.register_forward_hook(spoil)
    with pytest.raises(NumericalError, match="not finite"):
        sample(dataclasses.replace(loaded, eos_ids=(NEVER,)), requests_of(loaded))


def test_a_forbidden_token_is_not_an_error_and_never_drawn(loaded: LoadedModel) -> None:
    requests = requests_of(loaded, samples=20)
    free = sample(loaded, requests)
    drawn = {i for c in free for i in c.token_ids}
    forbidden = max(drawn, key=lambda i: sum((c.token_ids == i).sum() for c in free))

    def forbid(module: Any, inputs: Any, output: Any) -> None:
        output.logits[..., forbidden] = -float("inf")

    loaded.model.register_forward_hook(forbid)
    made = sample(loaded, requests)
    assert forbidden not in {i for c in made for i in c.token_ids}
    assert all(h >= 0 for c in made for h in c.entropies)

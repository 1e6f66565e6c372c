"""The engine that replays: by problem and sample, in the order asked."""

import pytest

from forkpoint.errors import DataError
from forkpoint.sampling.base import SampleRequest, SamplingSettings
from forkpoint.sampling.scripted import ScriptedEngine
from forkpoint.types import Completion, FinishReason, Problem, Prompt

SETTINGS = SamplingSettings(max_new_tokens=4, temperature=1.0, seed=0, step=1)


def completion(text: str) -> Completion:
    return Completion(
        token_ids=(1,),
        logprobs=(-0.5,),
        entropies=(0.25,),
        finish_reason=FinishReason.STOP,
        text=text,
    )


def request(problem: str, sample: int, serial: int = 0) -> SampleRequest:
    prompt = Prompt(problem=Problem(id=problem, prompt="x"), token_ids=(5,))
    return SampleRequest(prompt=prompt, serial=serial, sample=sample)


@pytest.fixture
def engine() -> ScriptedEngine:
    script = {(p, s): completion(f"{p}{s}") for p in ("a", "b") for s in (0, 1)}
    return ScriptedEngine(script)


def test_answers_in_the_order_asked_whatever_the_serial(engine: ScriptedEngine) -> None:
    requests = [request("b", 1, serial=9), request("a", 0), request("b", 1), request("b", 0)]
    made = engine.sample(requests, SETTINGS)
    assert [c.text for c in made] == ["b1", "a0", "b1", "b0"]
    assert engine.sample([], SETTINGS) == []


@pytest.mark.parametrize(("problem", "sample"), [("a", 2), ("c", 0)])
def test_what_the_script_lacks_is_named(engine: ScriptedEngine, problem: str, sample: int) -> None:
    with pytest.raises(DataError, match=f"no sample {sample} of problem '{problem}'"):
        engine.sample([request("a", 0), request(problem, sample)], SETTINGS)


def test_says_what_it_is(engine: ScriptedEngine) -> None:
    # its entropies were captured when it was recorded, by other weights than the model's
    assert (engine.captures_entropy, engine.same_weights) == (True, False)
    engine.close()
    assert [c.text for c in engine.sample([request("a", 1)], SETTINGS)] == ["a1"]

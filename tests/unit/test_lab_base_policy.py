"""The shipped policy and its tokenizer, and how they are made."""

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from forkpoint.config.stages import ModelConfig
from forkpoint.lab import BASE_POLICIES, EOS, WORLDS, GameWorld, base_policy, draw_problem
from forkpoint.lab.base_policy import (
    IGNORED,
    PAD,
    EntropyError,
    build_model,
    build_tokenizer,
    entropy_error,
)
from forkpoint.lab.truth import ForkDetection
from forkpoint.lab.world import demonstrate
from forkpoint.policy.load import load_model
from forkpoint.randomness import stream

# ---- tokenizer ----------------------------------------------------------------------------------


def test_a_word_is_a_token() -> None:
    tokenizer = build_tokenizer(GameWorld())
    words = GameWorld().vocabulary()
    assert len(tokenizer) == len(words) + 2
    assert (tokenizer.pad_token, tokenizer.eos_token) == (PAD, EOS)
    ids = tokenizer(" ".join(words))["input_ids"]
    assert len(set(ids)) == len(words)
    assert not {tokenizer.pad_token_id, tokenizer.eos_token_id} & set(ids)
    assert tokenizer.decode(ids) == " ".join(words)
    # numbers and punctuation are words of their own: nothing is joined to its neighbour
    assert tokenizer.decode(tokenizer("n1 : n10 ;")["input_ids"]) == "n1 : n10 ;"
    assert tokenizer.decode([*ids[:2], tokenizer.eos_token_id], skip_special_tokens=True) == (
        " ".join(words[:2])
    )


@pytest.mark.parametrize("source", ["built", "shipped"])
def test_an_unknown_word_is_an_error(source: str) -> None:
    tokenizer = build_tokenizer(GameWorld())
    if source == "shipped":
        tokenizer = load_model(ModelConfig()).tokenizer
    for text in ("pick banana", "n100", "n3and", "Pick"):
        with pytest.raises(Exception, match="UNK"):
            tokenizer(text)


def test_what_the_demonstration_says_survives_the_tokenizer() -> None:
    tokenizer = build_tokenizer(GameWorld())
    for serial in range(20):
        problem = draw_problem(GameWorld(), seed=0, serial=serial, split="train")
        words = demonstrate(GameWorld(), problem.columns, stream(0, "test demonstration", serial))
        ids = tokenizer.convert_tokens_to_ids(words)
        assert ids[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(ids, skip_special_tokens=True).split() == words[:-1]
        assert tokenizer.decode(tokenizer(problem.prompt)["input_ids"]) == problem.prompt


# ---- the shipped policy -------------------------------------------------------------------------


@pytest.mark.parametrize("name", WORLDS)
def test_a_shipped_policy_is_small_and_loads_with_its_tokenizer(name: str) -> None:
    files = list(BASE_POLICIES[f"lab:{name}"].iterdir())
    assert sum(file.stat().st_size for file in files) < 4 * 2**20
    assert not [file for file in files if file.suffix in {".bin", ".pt", ".pkl"}]
    loaded = load_model(ModelConfig(path=f"lab:{name}"))
    assert loaded.model.num_parameters() < 1_000_000
    assert loaded.tokenizer.get_vocab() == build_tokenizer(WORLDS[name]()).get_vocab()
    assert loaded.eos_ids == (loaded.tokenizer.eos_token_id,)
    assert len(loaded.tokenizer) == loaded.model.config.vocab_size


@pytest.mark.parametrize("name", WORLDS)
def test_a_shipped_policy_speaks_as_the_demonstration_does(name: str) -> None:
    loaded, world = load_model(ModelConfig(path=f"lab:{name}")), WORLDS[name]()
    error = entropy_error(world, loaded.tokenizer, loaded.model, seed=77, demonstrations=40)
    assert error.positions > 1000
    assert 0.15 < error.fork_share < 0.25
    assert error.mean_absolute < 0.05
    assert error.forks_measured == pytest.approx(error.forks_true, rel=0.1)
    assert error.forced_measured < 0.05
    assert error.detection.average_precision > 0.95


def test_entropy_error_of_an_untrained_policy_is_near_ln_v() -> None:
    # Weights of standard deviation 0.02 give logits close to equal: H = ln V everywhere, and
    # the error at forced words, whose truth is 0, is ln V too.
    tokenizer = build_tokenizer(GameWorld())
    model = build_model(tokenizer, seed=0).eval()
    error = entropy_error(GameWorld(), tokenizer, model, seed=3, demonstrations=4)
    flat = math.log(len(tokenizer))
    assert error.forced_measured == pytest.approx(flat, abs=0.1)
    assert error.forks_measured == pytest.approx(flat, abs=0.1)
    assert error.p80 == pytest.approx(flat, abs=0.1)
    share = error.fork_share
    forks, forced = error.forks_measured - error.forks_true, error.forced_measured
    assert error.mean_absolute == pytest.approx(share * forks + (1 - share) * forced)


# ---- how it is made -----------------------------------------------------------------------------


def test_prompt_and_padding_teach_nothing() -> None:
    ids_BL, labels_BL = base_policy._batch([([5, 6], [7, 8, 1]), ([9], [1])])
    assert ids_BL.tolist() == [[5, 6, 7, 8, 1], [9, 1, 0, 0, 0]]
    off = IGNORED
    assert labels_BL.tolist() == [[off, off, 7, 8, 1], [off, 1, off, off, off]]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training on few demonstrations a step."""
    monkeypatch.setattr(base_policy, "DEMONSTRATIONS", 4)


@pytest.mark.usefixtures("quick")
def test_training_starts_at_ln_v_learns_and_repeats_itself(
    capsys: pytest.CaptureFixture[str],
) -> None:
    world, tokenizer = GameWorld(verbosity=0), build_tokenizer(GameWorld())

    def trained(seed: int) -> Any:
        model = build_model(tokenizer, seed)
        base_policy.train_base_policy(world, tokenizer, model, seed=seed, steps=12)
        return model

    first = trained(1)
    losses = [float(x) for x in re.findall(r"loss (\S+) nats", capsys.readouterr().out)]
    assert losses[0] == pytest.approx(math.log(len(tokenizer)), abs=0.15)
    assert losses[-1] < losses[0] - 1
    assert not first.training
    a, b, c = (m.get_input_embeddings().weight for m in (first, trained(1), trained(2)))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


@pytest.mark.usefixtures("quick")
def test_one_command_makes_a_policy_that_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[dict[str, Any]] = []

    def few(*arguments: Any, **given: Any) -> EntropyError:
        asked.append(given)
        return entropy_error(*arguments, **{**given, "demonstrations": 3})

    monkeypatch.setattr(base_policy, "entropy_error", few)
    out = tmp_path / "policy"
    small = ["--width", "64", "--layers", "2", "--set", "verbosity=0"]
    base_policy.main(["--world", "game", "--out", str(out), "--steps", "2", "--seed", "4", *small])
    loaded = load_model(ModelConfig(path=str(out)))
    assert loaded.tokenizer.get_vocab() == build_tokenizer(GameWorld()).get_vocab()
    # measured on other problems than it was trained on: another seed, held out
    assert asked == [{"seed": 5, "demonstrations": 500}]
    readme = (out / "README.md").read_text(encoding="utf-8")
    assert "--world game --seed 4 --steps 2 --set verbosity=0 --width 64 --layers 2" in readme
    assert loaded.model.config.hidden_size == 64
    assert f"{loaded.model.num_parameters():,} parameters" in readme
    assert readme in capsys.readouterr().out


def test_the_readme_says_what_was_measured() -> None:
    error = EntropyError(
        positions=12345,
        fork_share=0.2,
        forks_true=0.75,
        forks_measured=0.8125,
        forced_measured=0.0123,
        mean_absolute=0.0456,
        p80=0.0321,
        detection=ForkDetection(precision=0.875, recall=0.925, average_precision=0.975),
    )
    options = base_policy.argparse.Namespace(
        world="game", seed=0, steps=900, rules=[], width=128, layers=3
    )
    model = torch.nn.Linear(10, 100)  # 1,100 parameters
    text = base_policy._readme(options, model, error)
    for expected in (
        "900 steps of 64 demonstrations",
        "1,100 parameters",
        "at 12,345 positions",
        "| forks | 20.0% | 0.750 | 0.812 |",
        "| forced | 80.0% | 0 | 0.0123 |",
        "error 0.0456 nats",
        "entropy\n0.032 nats",
        "precision\n0.875 and recall 0.925",
        "precision\n0.975)",
    ):
        assert expected in text

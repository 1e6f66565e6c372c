"""Train a base policy: ``python -m forkpoint.lab.base_policy --world walk --out FOLDER``.

A Qwen3 of 3 layers, 128 wide, learns to imitate the demonstrations of a world: some minutes on two
cores. Other sizes and other rules make other policies, such as
``--width 64 --set verbosity=0 --set size=12``.
Then its entropy is compared with the demonstration policy's at fresh positions, and the folder's
README.md says how far they are apart.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from forkpoint.entropy.logits import logits_stats
from forkpoint.lab import WORLDS, build_world
from forkpoint.lab.problems import Split, draw_problem
from forkpoint.lab.truth import ForkDetection, fork_detection, truth_of
from forkpoint.lab.world import EOS, World, demonstrate
from forkpoint.randomness import stream
from forkpoint.types import Problem

STEPS = 900
DEMONSTRATIONS = 64
PEAK_LR = 3e-3
WIDTH, LAYERS = 128, 3
IGNORED = -100
PAD = "<pad>"


@dataclass(frozen=True, slots=True, kw_only=True)
class EntropyError:
    """Measured minus true entropy of demonstrations, in nats."""

    positions: int
    fork_share: float
    forks_true: float
    forks_measured: float
    forced_measured: float
    """The true value is 0."""
    mean_absolute: float
    p80: float
    """80th percentile of measured entropy."""
    detection: ForkDetection


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--world", choices=WORLDS, required=True)
    parser.add_argument("--set", dest="rules", metavar="RULE=VALUE", action="append", default=[])
    parser.add_argument("--width", type=int, default=WIDTH)
    parser.add_argument("--layers", type=int, default=LAYERS)
    options = parser.parse_args(arguments)
    rules = dict(rule.split("=", 1) for rule in options.rules)
    world = build_world(options.world, {k: json.loads(v) for k, v in rules.items()})
    tokenizer = build_tokenizer(world)
    started = time.perf_counter()
    model = build_model(tokenizer, options.seed, width=options.width, layers=options.layers)
    train_base_policy(world, tokenizer, model, seed=options.seed, steps=options.steps)
    minutes = (time.perf_counter() - started) / 60
    model.save_pretrained(options.out)
    tokenizer.save_pretrained(options.out)
    error = entropy_error(world, tokenizer, model, seed=options.seed + 1, demonstrations=500)
    readme = _readme(options, model, error)
    (options.out / "README.md").write_text(readme, encoding="utf-8")
    print(f"{readme}\ntrained in {minutes:.1f} minutes")


def build_tokenizer(world: World) -> Any:
    """A ``PreTrainedTokenizerFast`` of the world's words; an unknown word is an error."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = [PAD, EOS, *world.vocabulary()]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    return PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token=EOS, pad_token=PAD, clean_up_tokenization_spaces=False
    )


def build_model(tokenizer: Any, seed: int, *, width: int = WIDTH, layers: int = LAYERS) -> Any:
    """An untrained policy with seeded weights and heads of a quarter of its width."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(seed)
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=3 * width,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=width // 4,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def train_base_policy(world: World, tokenizer: Any, model: Any, *, seed: int, steps: int) -> None:
    """Cross-entropy on demonstrations of the training problems, drawn anew each step."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LR, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LR, total_steps=steps)
    for step in range(steps):
        serials = range(step * DEMONSTRATIONS, (step + 1) * DEMONSTRATIONS)
        ids_BL, labels_BL = _batch(
            [_ids(tokenizer, *_demonstration(world, seed, serial, "train")) for serial in serials]
        )
        loss = model(input_ids=ids_BL, labels=labels_BL).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == steps - 1:
            print(f"step {step:4d}  loss {loss.item():.4f} nats", flush=True)
    model.eval()


@torch.no_grad()
def entropy_error(
    world: World, tokenizer: Any, model: Any, *, seed: int, demonstrations: int
) -> EntropyError:
    """Compare a policy's entropy with the truth along demonstrations of held-out problems."""
    true, measured, forks = [], [], []
    for serial in range(demonstrations):
        problem, words = _demonstration(world, seed, serial, "held_out")
        prompt, answer = _ids(tokenizer, problem, words)
        ids = torch.tensor(prompt + answer)
        logits_RV = model(input_ids=ids[None]).logits[0, len(prompt) - 1 : -1]
        measured += logits_stats(logits_RV, ids[len(prompt) :], 1.0)[1].tolist()
        truth = truth_of(world, problem.columns, words)
        true += truth.entropies
        forks += truth.forks
    true, measured, fork = np.array(true), np.array(measured), np.array(forks)
    return EntropyError(
        positions=len(true),
        fork_share=float(fork.mean()),
        forks_true=float(true[fork].mean()),
        forks_measured=float(measured[fork].mean()),
        forced_measured=float(measured[~fork].mean()),
        mean_absolute=float(np.abs(measured - true).mean()),
        p80=float(np.quantile(measured, 0.8)),
        detection=fork_detection(measured.tolist(), forks, 0.2),
    )


def _demonstration(world: World, seed: int, serial: int, split: Split) -> tuple[Problem, list[str]]:
    """A problem and a demonstration of it."""
    problem = draw_problem(world, seed=seed, serial=serial, split=split)
    draw = stream(seed, "lab demonstration", serial)
    return problem, demonstrate(world, problem.columns, draw)


def _ids(tokenizer: Any, problem: Problem, words: list[str]) -> tuple[list[int], list[int]]:
    """Token ids of a problem and of an answer to it."""
    return tokenizer(problem.prompt)["input_ids"], tokenizer.convert_tokens_to_ids(words)


def _batch(pairs: Sequence[tuple[list[int], list[int]]]) -> tuple[Tensor, Tensor]:
    """Right-padded ids and labels; the prompt and the padding teach nothing."""
    ids = [torch.tensor(prompt + answer) for prompt, answer in pairs]
    labels = [torch.tensor([IGNORED] * len(prompt) + answer) for prompt, answer in pairs]
    return (
        pad_sequence(ids, batch_first=True),
        pad_sequence(labels, batch_first=True, padding_value=IGNORED),
    )


def _readme(options: argparse.Namespace, model: Any, error: EntropyError) -> str:
    """The folder's README.md: how it was made and how far its entropies are from the truth."""
    parameters = sum(p.numel() for p in model.parameters())
    flags = f"--world {options.world} --seed {options.seed} --steps {options.steps}"
    flags += "".join(f" --set {rule}" for rule in options.rules)
    if (options.width, options.layers) != (WIDTH, LAYERS):
        flags += f" --width {options.width} --layers {options.layers}"
    found = error.detection
    return f"""\
# A base policy of the laboratory

Made by `python -m forkpoint.lab.base_policy --out FOLDER {flags}`:
{options.steps} steps of {DEMONSTRATIONS} demonstrations.
Qwen3 architecture, {parameters:,} parameters, float32.

Its entropy in nats against the truth, at {error.positions:,} positions of demonstrations on
held-out problems:

| words | share | true | measured |
|---|---|---|---|
| forks | {error.fork_share:.1%} | {error.forks_true:.3f} | {error.forks_measured:.3f} |
| forced | {1 - error.fork_share:.1%} | 0 | {error.forced_measured:.4f} |

Mean absolute error {error.mean_absolute:.4f} nats; 80th percentile of measured entropy
{error.p80:.3f} nats. The 20 % of highest entropy find the forks with precision
{found.precision:.3f} and recall {found.recall:.3f} (average precision
{found.average_precision:.3f}).
"""


if __name__ == "__main__":
    main()

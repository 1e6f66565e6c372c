"""Reinforcement learning on forking tokens, the whole method in one file.

    python examples/minimal_grpo.py --steps 20

A small language model plays an arithmetic game in words and gets a reward of 1 for a win. Most of
its words follow from those before them; at a few, the forks, it decides. Only these are trained on
("Beyond the 80/20 Rule", arXiv 2506.01939). One step:

    sample      G completions of each of P prompts, from the policy as it is
    reward      r_i = 1 if completion i wins its game, else 0
    advantage   A_i = (r_i - mean r) / (std r + 1e-6) among the G completions of its prompt
    entropy     H_t = - sum_v p_v ln p_v, in nats, of the distribution token t was drawn from
    select      S = the k = ceil(0.2 n) tokens of highest entropy among all n of the step
    update      for each mini-batch b in turn, with S_b the tokens of S in it and
                rho_t = pi(o_t) / pi_old(o_t), one step of AdamW down the gradient of

                L_b = - 1 / |S_b|  sum_{t in S_b} min( rho_t A_t, clip(rho_t, 0.8, 1.28) A_t )

What plain GRPO (arXiv 2402.03300) does otherwise:

    * it trains on every token; here four in five have no part in the loss;
    * it takes the mean over each completion's tokens, then over completions, so that a token of a
      long answer counts less; here every selected token counts the same;
    * it clips rho to 1 +- 0.2; here rare words may grow further before the clip stops them;
    * it keeps groups whose rewards are all equal; their advantages are 0, so here other prompts
      are drawn in their place;
    * it adds a KL penalty towards the first policy; here there is none.

The first is the paper's, the others are DAPO's (arXiv 2503.14476). The package does the same for
other models and tasks, without computing what is then multiplied by zero: the numbers agree, which
``tests/equivalence/test_minimal_grpo.py`` checks.

Names end in their axes: _P prompts, _G completions of one prompt, _B completions, _L places in a
row, _T tokens of several completions laid end to end, _V vocabulary.
"""

import argparse
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import chain, pairwise
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from forkpoint.lab import BASE_POLICIES, GameWorld, draw_problem, verify
from forkpoint.randomness import stream


@dataclass(frozen=True)
class Settings:
    """All but ``steps`` are the defaults of ``forkpoint train``."""

    steps: int = 20
    seed: int = 0
    prompts: int = 24  # P
    samples: int = 12  # G
    max_rounds: int = 3  # of drawing other prompts in place of those that teach nothing
    max_new_tokens: int = 160
    temperature: float = 1.0
    keep_fraction: Fraction = Fraction(1, 5)  # exact: in floating point ceil(0.07 * 100) is 8
    mini_batches: int = 4
    clip_low: float = 0.2
    clip_high: float = 0.28
    lr: float = 1e-4
    clip_norm: float = 1.0


@dataclass
class Answer:
    """A completion, filled in as it becomes known. The lists have one entry per token."""

    prompt_ids: list[int]
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    entropies: list[float] = field(default_factory=list)
    reward: float = math.nan
    advantage: float = math.nan


@dataclass(frozen=True)
class Report:
    """What a step did."""

    step: int
    sampled_B: list[Answer]
    trained_B: list[Answer]  # of the groups that teach something
    selected_T: Tensor  # bool, the forks among the tokens of trained_B
    losses: list[float]  # of each mini-batch
    grad_norms: list[float]  # of each mini-batch, before clipping


# ---- sample, reward, advantage ------------------------------------------------------------------


@torch.no_grad()
def write_answers(
    model: Any, eos_id: int, answers_B: list[Answer], u_BL: Tensor, s: Settings
) -> None:
    """Write every answer to its end, a token a pass over a growing key-value cache.

    ``u_BL`` are float64 in [0, 1), one for each token that may be drawn.
    """
    cache = DynamicCache()
    inputs_BL = torch.tensor([a.prompt_ids for a in answers_B])  # all of one length in the lab
    for position in range(s.max_new_tokens):
        logits_BLV = model(input_ids=inputs_BL, past_key_values=cache, use_cache=True).logits
        logp_BV = (logits_BLV[:, -1] / s.temperature).log_softmax(-1)
        tokens_B = draw(logp_BV.exp(), u_BL[:, position])
        logprobs_B = logp_BV.gather(1, tokens_B[:, None])[:, 0]
        # From the very logits the token was drawn from: no later pass is needed to get it.
        entropies_B = -(logp_BV.exp() * logp_BV).sum(-1)
        columns = tokens_B.tolist(), logprobs_B.tolist(), entropies_B.tolist()
        for answer, token_id, logprob, entropy in zip(answers_B, *columns, strict=True):
            answer.token_ids.append(token_id)
            answer.logprobs.append(logprob)
            answer.entropies.append(entropy)
        going_B = (tokens_B != eos_id).nonzero()[:, 0]
        if not len(going_B):
            return
        cache.batch_select_indices(going_B)
        answers_B, u_BL = [answers_B[b] for b in going_B], u_BL[going_B]
        inputs_BL = tokens_B[going_B, None]


def draw(p_BV: Tensor, u_B: Tensor) -> Tensor:
    """One token per row: the first whose cumulative probability exceeds u.

    With u from the answer's own stream, a token does not depend on what else is in the batch, as
    it would with ``torch.multinomial``.
    """
    cumulative_BV = p_BV.double().cumsum(-1)
    target_B = u_B * cumulative_BV[:, -1]
    return torch.searchsorted(cumulative_BV, target_B[:, None], right=True)[:, 0]


def sample_groups(
    model: Any, tokenizer: Any, s: Settings, step: int, serials_P: Sequence[int]
) -> list[list[Answer]]:
    """G answers to each of the problems of the given numbers, with rewards and advantages."""
    world, groups_P, u_B = GameWorld(), [], []
    problems_P = [draw_problem(world, seed=0, serial=n, split="train") for n in serials_P]
    for problem, serial in zip(problems_P, serials_P, strict=True):
        prompt_ids = tokenizer(problem.prompt)["input_ids"]
        groups_P.append([Answer(prompt_ids) for _ in range(s.samples)])
        for sample in range(s.samples):
            u_L = stream(s.seed, "sample", step, serial, sample).random(s.max_new_tokens)
            u_B.append(torch.from_numpy(u_L))
    write_answers(model, tokenizer.eos_token_id, list(chain(*groups_P)), torch.stack(u_B), s)
    for problem, group_G in zip(problems_P, groups_P, strict=True):
        for answer in group_G:
            text = tokenizer.decode(answer.token_ids, skip_special_tokens=True)
            answer.reward = verify(world, problem.columns, text)
        for answer, advantage in zip(group_G, advantages([a.reward for a in group_G]), strict=True):
            answer.advantage = advantage
    return groups_P


def advantages(rewards_G: list[float]) -> list[float]:
    """A_i = (r_i - mean r) / (std r + 1e-6), the same for every token of an answer."""
    r_G = torch.tensor(rewards_G, dtype=torch.float64)
    return ((r_G - r_G.mean()) / (r_G.std() + 1e-6)).tolist()


# ---- select -------------------------------------------------------------------------------------


def select_forks(entropies_T: Tensor, keep_fraction: Fraction) -> Tensor:
    """The k = ceil(keep_fraction n) tokens of highest entropy: bool [T].

    Tokens come in order of answer and position, and the sort is stable: at the edge equal
    entropies go by answer, then position, so that exactly k are kept.
    """
    k = math.ceil(keep_fraction * len(entropies_T))
    selected_T = torch.zeros(len(entropies_T), dtype=torch.bool)
    selected_T[entropies_T.argsort(descending=True, stable=True)[:k]] = True
    return selected_T


# ---- update -------------------------------------------------------------------------------------


def logprobs_of(model: Any, answers_B: Sequence[Answer], s: Settings) -> Tensor:
    """ln pi of every token of the answers, laid end to end, with gradient: [T].

    Rows are padded on the right, which needs no mask: attention only ever looks to the left.
    """
    ids_BL = pad_sequence([torch.tensor(a.prompt_ids + a.token_ids) for a in answers_B], True)
    logp_BLV = (model(input_ids=ids_BL).logits / s.temperature).log_softmax(-1)
    next_BL = logp_BLV[:, :-1].gather(2, ids_BL[:, 1:, None])[:, :, 0]  # place l predicts l + 1
    starts_B = [len(a.prompt_ids) - 1 for a in answers_B]
    return torch.cat(
        [next_BL[b, starts_B[b] :][: len(a.token_ids)] for b, a in enumerate(answers_B)]
    )


def fork_loss(
    logp_T: Tensor, old_T: Tensor, A_T: Tensor, selected_T: Tensor, s: Settings
) -> Tensor:
    """- mean over selected tokens of min( rho A, clip(rho, 1 - low, 1 + high) A )."""
    rho_T = (logp_T - old_T).exp()
    clipped_T = rho_T.clamp(1 - s.clip_low, 1 + s.clip_high)
    return -torch.minimum(rho_T * A_T, clipped_T * A_T)[selected_T].sum() / selected_T.sum()


def update(
    model: Any, optimizer: Any, answers_B: Sequence[Answer], selected_T: Tensor, s: Settings
) -> Iterator[tuple[float, float]]:
    """An optimizer step per mini-batch: yields its loss and the norm of its gradient."""
    count = min(s.mini_batches, len(answers_B))
    cuts = [len(answers_B) * b // max(count, 1) for b in range(count + 1)]
    forks_B = selected_T.split([len(a.token_ids) for a in answers_B])
    for start, end in pairwise(cuts):
        part_B, forks_T = answers_B[start:end], torch.cat(forks_B[start:end])
        if not forks_T.any():
            continue
        old_T = torch.tensor([p for a in part_B for p in a.logprobs])
        A_T = torch.tensor([a.advantage for a in part_B for _ in a.token_ids])
        loss = fork_loss(logprobs_of(model, part_B, s), old_T, A_T, forks_T, s)
        optimizer.zero_grad()
        loss.backward()
        norm = clip_grad_norm_(model.parameters(), s.clip_norm)
        optimizer.step()
        yield loss.item(), norm.item()


# ---- the loop -----------------------------------------------------------------------------------


def train(model: Any, tokenizer: Any, s: Settings) -> Iterator[Report]:
    """Train ``model`` in place: yields what each step did."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=s.lr, weight_decay=0.0)
    serial = 0  # the next problem of an endless stream
    for step in range(1, s.steps + 1):
        sampled_P: list[list[Answer]] = []
        trained_P: list[list[Answer]] = []
        for _ in range(s.max_rounds):
            serials_P = range(serial, serial + s.prompts - len(trained_P))
            if not serials_P:
                break
            groups_P = sample_groups(model, tokenizer, s, step, serials_P)
            sampled_P += groups_P
            trained_P += [g for g in groups_P if len({a.reward for a in g}) > 1]
            serial = serials_P.stop
        sampled_B, trained_B = list(chain(*sampled_P)), list(chain(*trained_P))
        # Over the whole step and before its first update: which tokens are forks does not depend
        # on how the step is cut into mini-batches.
        entropies_T = torch.tensor([h for a in trained_B for h in a.entropies])
        selected_T = select_forks(entropies_T, s.keep_fraction)
        results = list(update(model, optimizer, trained_B, selected_T, s))
        losses, grad_norms = [loss for loss, _ in results], [norm for _, norm in results]
        yield Report(step, sampled_B, trained_B, selected_T, losses, grad_norms)


def load_base_policy() -> tuple[Any, Any]:
    """The laboratory's model, without dropout so that the policy is one function; its tokenizer."""
    model = AutoModelForCausalLM.from_pretrained(BASE_POLICIES["lab:game"], dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(BASE_POLICIES["lab:game"])


def main() -> None:
    """Train the laboratory's base policy and print a line a step."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    for name in ("steps", "seed", "prompts", "samples"):
        parser.add_argument(f"--{name}", type=int, default=getattr(Settings, name))
    settings = Settings(**vars(parser.parse_args()))
    started = time.perf_counter()
    for r in train(*load_base_policy(), settings):
        print(
            f"step {r.step:3d}   reward {fmean(a.reward for a in r.sampled_B):.3f}   "
            f"length {fmean(len(a.token_ids) for a in r.sampled_B):5.1f}   "
            f"entropy {fmean(h for a in r.sampled_B for h in a.entropies):.3f} nats   "
            f"forks {int(r.selected_T.sum())} of {len(r.selected_T)}   "
            f"gradient {fmean(r.grad_norms or [0]):.3f}   {time.perf_counter() - started:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()

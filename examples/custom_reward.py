"""A reward of your own, with TRL's signature: the laboratory's game, won in few tries.

    cd examples
    forkpoint train --set 'rewards=[{type="custom", path="custom_reward:quick_win"}]'

or in a recipe, beside others if you like; the reward is then their weighted sum:

    [[rewards]]
    type = "custom"
    path = "custom_reward:quick_win"
    weight = 1.0

The columns of a problem come by name, as lists with one entry per completion. Chat prompts and
completions are lists of messages, as in TRL; the laboratory's are plain text.
"""

from typing import Any

from forkpoint.lab import GameWorld, truth_of, verify


def quick_win(
    prompts: list[str],
    completions: list[str],
    *,
    numbers: list[list[int]],
    goal: list[int],
    **columns: Any,
) -> list[float | None]:
    """1 / tries for a win, 0 for a loss or an illegal word; None, which leaves the sample out, for
    a legal game that the token budget cut off."""
    rewards: list[float | None] = []
    for text, start, target in zip(completions, numbers, goal, strict=True):
        world, words = GameWorld(), text.split()
        problem = {"numbers": start, "goal": target}
        legal = truth_of(world, problem, words).legal_words == len(words)
        won = verify(world, problem, text)
        unknown = legal and words[-1:] not in (["yes"], ["stop"])
        rewards.append(None if unknown else won / max(1, words.count("check")))
    return rewards

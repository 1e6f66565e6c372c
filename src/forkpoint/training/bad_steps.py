"""Steps that could not be trained on: counted, dumped, and after enough in a row the end."""

import re
from itertools import accumulate
from pathlib import Path

from torch import Tensor

from forkpoint.errors import NumericalError, SelectionError
from forkpoint.sampling.collect import StepRollouts
from forkpoint.types import TokenBatch

ZERO_VARIANCE = "in no group one sample did better than another"
ALL_TRUNCATED = "every completion of the groups that teach something was cut by the token budget"
NOT_SCORED = "no completion could be scored"
NOTHING_SELECTED = "no token was selected"

_ADVICE = {
    ZERO_VARIANCE: (
        "the task is too hard or too easy for this model, or the reward never varies: look at the "
        "completions in completions/train/, then try an easier task, more samples per prompt "
        "(rollout.group_size) or more rounds (rollout.max_rounds)"
    ),
    NOT_SCORED: "mend the reward function: every failure is in completions/train/, column error",
    NOTHING_SELECTED: (
        "lower selection.threshold_nats, raise selection.keep_fraction, or let your selection.rule "
        "give some token a weight above 0"
    ),
    ALL_TRUNCATED: "raise rollout.max_new_tokens, or set rollout.truncated = 'keep'",
}
_DEFAULT_ADVICE = (
    "try a lower optim.lr, or model.compute_dtype = 'float32'; batches that got as far as training "
    "are in bad_steps/"
)

KEPT_DUMPS = 3
"""How many batches are kept, the newest."""
MOST_DUMPED_TOKENS = 1_000_000
"""Of prompts and completions in one file: less than 100 MB."""


def nothing_scored(rollouts: StepRollouts) -> str | None:
    """Why no sample of a step has a reward, or None if one has."""
    scores = [r.score for group in rollouts.groups for r in group.rollouts_G]
    if any(score.reward is not None for score in scores):
        return None
    reasons = [score.error for score in scores if score.error is not None]
    return f"{NOT_SCORED}: {reasons[0] if reasons else 'every reward function returned None'}"


def nothing_to_learn(batch: TokenBatch) -> str | None:
    """Why a batch has no policy gradient, or None."""
    if not bool((batch.advantages_T != 0).any()):
        return ZERO_VARIANCE
    if not bool((batch.mask_T & (batch.advantages_T != 0)).any()):
        return ALL_TRUNCATED
    return None


def check_bad_steps(fault: str | None, count: int, limit: int) -> None:
    """End the run once ``limit`` steps in a row could not be trained on.

    Args:
        fault: why the last step could not be trained on; None if it could.
        count: bad steps in a row, the last step among them.

    Raises:
        NumericalError, SelectionError: the limit is reached.
    """
    if fault is None or count < limit:
        return
    advice = [text for start, text in _ADVICE.items() if fault.startswith(start)]
    kind = SelectionError if advice else NumericalError
    raise kind(
        f"{count} steps in a row could not be trained on, the last because {fault}; "
        + (advice[0] if advice else _DEFAULT_ADVICE)
    )


def dump_batch(path: Path, batch: TokenBatch) -> None:
    """Write every tensor of a batch as safetensors, for whoever looks into the fault.

    Ragged fields are laid end to end, with their lengths beside them. Of a batch of more than
    ``MOST_DUMPED_TOKENS`` tokens the first sequences are written, and of the files in the folder
    the newest ``KEPT_DUMPS`` stay.

    Raises:
        RunError: the disk is full.
    """
    import torch
    from safetensors.torch import save

    from forkpoint.runs.atomic import write_atomically

    batch = _first_sequences(batch)
    tensors: dict[str, Tensor] = {
        name: value
        for name in TokenBatch.__dataclass_fields__
        if isinstance(value := getattr(batch, name), Tensor)
    }
    tensors["prompt_ids"] = torch.cat([*batch.prompts_B, torch.zeros(0, dtype=torch.int64)])
    tensors["prompt_lengths_B"] = torch.tensor([len(p) for p in batch.prompts_B])
    # Cloned: two streams may be one tensor, which safetensors refuses.
    data = save({k: v.clone().contiguous() for k, v in tensors.items()})

    def write(partial: Path) -> None:
        partial.write_bytes(data)

    write_atomically(path, write)
    dumps = [p for p in path.parent.iterdir() if re.fullmatch(r"step_\d+\.safetensors", p.name)]
    for old in sorted(dumps, key=lambda p: int(p.stem.removeprefix("step_")))[:-KEPT_DUMPS]:
        old.unlink(missing_ok=True)


def _first_sequences(batch: TokenBatch) -> TokenBatch:
    """As many whole sequences as the limit allows, one at least."""
    pairs = zip(batch.prompts_B, batch.completions_B, strict=True)
    ends = accumulate(len(prompt) + len(completion) for prompt, completion in pairs)
    fitting = sum(end <= MOST_DUMPED_TOKENS for end in ends)
    if fitting == batch.num_sequences:
        return batch
    return batch.take(range(max(1, fitting)))

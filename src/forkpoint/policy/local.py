"""A cheaper gradient that is not exact: selected positions only, over constant keys and values.

The positions that predict wanted tokens run as queries over the cached keys and values of what
stands before them, which are held constant. So backward touches these positions alone. Each
contributes its own key and value with gradient; what flows into *earlier* positions through
attention is dropped. The values are exact, the gradient is biased.

The cache comes from sampling or from the pass for old log-probabilities while the weights are the
same, else from a pass of its own without gradient.
"""

from typing import Any

import torch
from torch import Tensor

from forkpoint.batching.tree import TreeRows, lay_trees
from forkpoint.policy.attention import slot_mask, tree_arguments
from forkpoint.policy.body import body_of
from forkpoint.policy.flops import body_flops, head_flops
from forkpoint.policy.head import head_of
from forkpoint.policy.keys import KeyStore, new_cache, row_cache
from forkpoint.types import TokenBatch, TokenStats


def local_stats(
    model: Any,
    batch: TokenBatch,
    wanted_T: Tensor,
    temperature: float,
    kept: KeyStore | None = None,
    *,
    width: int,
) -> TokenStats:
    """Statistics of the tokens ``wanted_T`` (bool [T]), with the local gradient.

    Args:
        kept: keys and values of these weights for every sequence with a wanted token.
    """
    rows = lay_trees(batch, wanted_T, width).to(model.device)
    cache = fill_cache(model, rows) if kept is None else row_cache(rows, batch, kept)
    columns_BS, filled_BS, slot_R = _queries(rows)
    ids_BS = rows.input_ids_BL.gather(1, columns_BS)
    hidden_BSD = body_of(model)(
        input_ids=ids_BS,
        position_ids=rows.position_ids_BL.gather(1, columns_BS),
        attention_mask=slot_mask(model, rows, columns_BS, filled_BS),
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state
    hidden_RD = hidden_BSD[rows.line_R, slot_R]
    token_ids_R = batch.token_ids_T.to(rows.rows_R.device)[rows.rows_R]
    logprobs_R, entropies_R, energies_R = head_of(model).stats(hidden_RD, token_ids_R, temperature)
    (lines, longest), slots = rows.input_ids_BL.shape, ids_BS.shape[1]
    cached = lines * longest if kept is None else 0
    pairs = lines * slots * (longest + slots)
    return TokenStats(
        rows_R=rows.rows_R,
        logprobs_R=logprobs_R,
        entropies_R=entropies_R,
        energies_R=energies_R,
        body_tokens=lines * slots,
        cached_tokens=cached,
        flops=body_flops(model, cached, cached * longest)
        + body_flops(model, lines * slots, pairs, learns=True)
        + 4 * head_flops(model, len(token_ids_R)),
    ).to(batch.token_ids_T.device)


@torch.no_grad()
def fill_cache(model: Any, rows: TreeRows) -> Any:
    """The cache of the rows under the present weights."""
    cache = new_cache()
    body_of(model)(**tree_arguments(model, rows), past_key_values=cache, use_cache=True)
    return cache


def _queries(rows: TreeRows) -> tuple[Tensor, Tensor, Tensor]:
    """The positions that run with gradient, in S slots a line, some of them empty: each predicting
    position once, though several completions may begin at it.

    Returns:
        The columns of the slots, int64 [lines, S] (an empty slot repeats column 0); which are
        filled, bool [lines, S]; the slot of each wanted row's prediction in its line, int64 [R].
    """
    lines, width = rows.input_ids_BL.shape
    device = rows.line_R.device
    places, which_R = (rows.line_R * width + rows.column_R).unique(return_inverse=True)
    line_Q, column_Q = places // width, places % width
    counts_B = torch.bincount(line_Q, minlength=lines)
    first_B = counts_B.cumsum(0) - counts_B
    slot_Q = torch.arange(len(places), device=device) - first_B[line_Q]
    slots = max(1, int(counts_B.max()))
    columns_BS = torch.zeros(lines, slots, dtype=torch.int64, device=device)
    columns_BS[line_Q, slot_Q] = column_Q
    filled_BS = torch.zeros(lines, slots, dtype=torch.bool, device=device)
    filled_BS[line_Q, slot_Q] = True
    return columns_BS, filled_BS, slot_Q[which_R]

"""A cheaper gradient that is not exact: selected positions only, over constant keys and values.

The positions that predict wanted tokens run as queries over the cached keys and values of what
stands before them, which are held constant. So backward touches these positions alone. Each
contributes its own key and value with gradient; what flows into *earlier* positions through
attention is dropped. The values are exact, the gradient is biased.

The cache comes from sampling or from the pass for old log-probabilities while the weights are the
same, else from a pass of its own without gradient.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from forkpoint.batching.tree import TreeRows, lay_trees
from forkpoint.policy.attention import attention_mask
from forkpoint.policy.body import body_of
from forkpoint.policy.flops import body_flops, head_flops
from forkpoint.policy.head import head_of
from forkpoint.policy.keys import KeptKeys, new_cache, row_cache
from forkpoint.types import TokenBatch, TokenStats


@dataclass(frozen=True, slots=True, kw_only=True)
class _Queries:
    """The positions that run with gradient: S slots a line, some of them empty."""

    columns_BS: Tensor
    """int64 [lines, S]; an empty slot repeats column 0."""
    filled_BS: Tensor
    """bool [lines, S]."""
    slot_R: Tensor
    """int64 [R], the slot of each wanted row's prediction in its line."""


def local_stats(
    model: Any,
    batch: TokenBatch,
    wanted_T: Tensor,
    temperature: float,
    kept: KeptKeys | None = None,
    *,
    width: int,
) -> TokenStats:
    """Statistics of the tokens ``wanted_T`` (bool [T]), with the local gradient.

    Args:
        kept: keys and values of these weights for every sequence with a wanted token.
    """
    rows = lay_trees(batch, wanted_T, width)
    visible_BLL = rows.visible_BLL()
    body = body_of(model)
    cache = fill_cache(model, rows, visible_BLL) if kept is None else row_cache(rows, batch, kept)
    queries = _queries(rows)
    ids_BS = rows.input_ids_BL.gather(1, queries.columns_BS)
    positions_BS = rows.position_ids_BL.gather(1, queries.columns_BS)
    hidden_BSD = body(
        input_ids=ids_BS.to(model.device),
        position_ids=positions_BS.to(model.device),
        attention_mask=attention_mask(model, _visible(visible_BLL, queries)),
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state
    device = hidden_BSD.device
    hidden_RD = hidden_BSD[rows.line_R.to(device), queries.slot_R.to(device)]
    token_ids_R = batch.token_ids_T[rows.rows_R].to(device)
    logprobs_R, entropies_R = head_of(model).stats(hidden_RD, token_ids_R, temperature)
    (lines, longest), slots = rows.input_ids_BL.shape, ids_BS.shape[1]
    cached = lines * longest if kept is None else 0
    return TokenStats(
        rows_R=rows.rows_R,
        logprobs_R=logprobs_R.cpu(),
        entropies_R=entropies_R.cpu(),
        body_tokens=lines * slots,
        cached_tokens=cached,
        flops=body_flops(model, cached, cached * longest)
        + 3 * body_flops(model, lines * slots, lines * slots * (longest + slots))
        + 4 * head_flops(model, len(token_ids_R)),
    )


@torch.no_grad()
def fill_cache(model: Any, rows: TreeRows, visible_BLL: Tensor) -> Any:
    """The cache of the rows under the present weights."""
    cache = new_cache()
    body_of(model)(
        input_ids=rows.input_ids_BL.to(model.device),
        position_ids=rows.position_ids_BL.to(model.device),
        attention_mask=attention_mask(model, visible_BLL),
        past_key_values=cache,
        use_cache=True,
    )
    return cache


def _queries(rows: TreeRows) -> _Queries:
    """Each predicting position once, though several completions may begin at it."""
    lines, width = rows.input_ids_BL.shape
    places, which_R = (rows.line_R * width + rows.column_R).unique(return_inverse=True)
    line_Q, column_Q = places // width, places % width
    counts_B = torch.bincount(line_Q, minlength=lines)
    slot_Q = torch.arange(len(places)) - (counts_B.cumsum(0) - counts_B)[line_Q]
    slots = max(1, int(counts_B.max()))
    columns_BS = torch.zeros(lines, slots, dtype=torch.int64)
    columns_BS[line_Q, slot_Q] = column_Q
    filled_BS = torch.zeros(lines, slots, dtype=torch.bool)
    filled_BS[line_Q, slot_Q] = True
    return _Queries(columns_BS=columns_BS, filled_BS=filled_BS, slot_R=slot_Q[which_R])


def _visible(visible_BLL: Tensor, queries: _Queries) -> Tensor:
    """bool [lines, S, L + S]: the cache but the query's own old entry, and its own new one."""
    lines, slots = queries.columns_BS.shape
    width = visible_BLL.shape[1]
    cached_BSL = visible_BLL.gather(1, queries.columns_BS[:, :, None].expand(-1, -1, width))
    cached_BSL &= queries.filled_BS[:, :, None]
    cached_BSL.scatter_(2, queries.columns_BS[:, :, None], False)
    own_BSS = torch.eye(slots, dtype=torch.bool).expand(lines, -1, -1)
    return torch.cat([cached_BSL, own_BSS], dim=2)

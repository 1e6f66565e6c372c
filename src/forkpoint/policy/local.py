"""A cheaper gradient that is not exact: some positions only, over constant keys and values.

The live positions, among them all that predict wanted tokens, run as queries. Each other's keys and
values they see with gradient; those of the rest are constant. So backward runs the layers on the
live positions alone. The values are exact for any live set; of the gradient what flows through the
constant positions is missing, but for its first hop (``policy.first_hop``).

The constant keys come from a pass of their own without gradient, in which is seen what the wanted
positions look at; or, without the first hop, from sampling or from the pass for old
log-probabilities while the weights are the same.
"""

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from forkpoint.batching.tree import NOTHING, TreeRows, lay_trees
from forkpoint.policy.attention import slot_mask, tree_arguments
from forkpoint.policy.body import body_of
from forkpoint.policy.first_hop import Inputs
from forkpoint.policy.flops import body_flops, head_flops, key_flops, score_flops
from forkpoint.policy.head import head_of
from forkpoint.policy.keys import KeyStore, Layers, cache_of, new_cache, row_cache
from forkpoint.policy.live import (
    LiveSet,
    Slots,
    joined,
    live_positions,
    reads_scores,
    slots_of,
    wanted_positions,
)
from forkpoint.policy.watch import Watch, pull_of, watching
from forkpoint.types import TokenBatch, TokenStats


def local_stats(
    model: Any,
    batch: TokenBatch,
    wanted_T: Tensor,
    temperature: float,
    kept: KeyStore | None = None,
    *,
    width: int,
    live: LiveSet,
) -> TokenStats:
    """Statistics of the tokens ``wanted_T`` (bool [T]), with the local gradient.

    Args:
        kept: keys and values of these weights for every sequence with a wanted token.
    """
    rows = lay_trees(batch, wanted_T, width).to(model.device)
    looking, scores_BL = slots_of(wanted_positions(rows)), None
    looks = reads_scores(rows, live)
    pull_BS = looking.take(pull_of(batch, rows)) * looking.filled_BS
    inputs = Inputs(model) if live.first_hop and kept is None else None
    if kept is None:
        watch = Watch(rows, looking, pull_BS) if looks else None
        with inputs.recorded() if inputs else nullcontext():
            cache = fill_cache(model, rows, keep=inputs is None, watch=watch)
        scores_BL = watch.scores_BL if watch else None
    else:
        cache = row_cache(rows, batch, kept)
        if looks:
            scores_BL = _scores_over(model, rows, cache, looking, pull_BS)
    live_BL = live_positions(rows, live, scores_BL)
    queries, constant = slots_of(live_BL), slots_of((rows.tree_BL != NOTHING) & ~live_BL)
    if inputs is None:
        layers = _columns(cache, constant)
    else:
        ids_BK, positions_BK = map(constant.take, (rows.input_ids_BL, rows.position_ids_BL))
        layers = inputs.keys(ids_BK, positions_BK, constant.take)
    hidden_BSD = _run(model, rows, queries, constant, layers)
    hidden_RD = hidden_BSD[rows.line_R, queries.slot_BL[rows.line_R, rows.column_R]]
    token_ids_R = batch.token_ids_T.to(rows.rows_R.device)[rows.rows_R]
    logprobs_R, entropies_R, energies_R = head_of(model).stats(hidden_RD, token_ids_R, temperature)
    (lines, longest), slots = rows.input_ids_BL.shape, queries.columns_BS.shape[1]
    cached = lines * longest if kept is None else 0
    held, looked = constant.columns_BS.shape[1], looking.columns_BS.shape[1] if looks else 0
    flops = body_flops(model, cached, cached * longest)
    flops += score_flops(model, lines * looked * longest)
    if kept is not None and looks:
        flops += body_flops(model, lines * looked, lines * looked * longest)
    if inputs is not None:
        flops += key_flops(model, layers)
    flops += body_flops(model, lines * slots, lines * slots * (held + slots), learns=True)
    return TokenStats(
        rows_R=rows.rows_R,
        logprobs_R=logprobs_R,
        entropies_R=entropies_R,
        energies_R=energies_R,
        body_tokens=lines * slots,
        cached_tokens=cached,
        flops=flops + 4 * head_flops(model, len(token_ids_R)),
        live_positions=int(queries.filled_BS.sum()),
        row_positions=int((rows.tree_BL != NOTHING).sum()),
    ).to(batch.token_ids_T.device)


@torch.no_grad()
def fill_cache(model: Any, rows: TreeRows, *, keep: bool = True, watch: Watch | None = None) -> Any:
    """A pass over the rows under the present weights; the cache it leaves.

    Args:
        keep: the cache is wanted; else it is None.
        watch: sees the pass.
    """
    cache = new_cache() if keep else None
    arguments = tree_arguments(model, rows)  # under the attention's own name, which says the mask
    with watching(model, watch):
        body_of(model)(**arguments, past_key_values=cache, use_cache=keep)
    return cache


@torch.no_grad()
def _scores_over(model: Any, rows: TreeRows, cache: Any, looking: Slots, pull_BS: Tensor) -> Tensor:
    """What the wanted positions look at, by running them alone over the cache of the rest."""
    rest = slots_of((rows.tree_BL != NOTHING) & ~wanted_positions(rows))
    watch = Watch(rows, looking, pull_BS, joined(rest, looking))
    _run(model, rows, looking, rest, _columns(cache, rest), watch)
    return watch.scores_BL


def _run(
    model: Any,
    rows: TreeRows,
    queries: Slots,
    constant: Slots,
    layers: Layers,
    watch: Watch | None = None,
) -> Tensor:
    """The last hidden states [lines, S, D] of some positions, over the keys of others and their
    own."""
    mask = slot_mask(model, rows, queries, joined(constant, queries))
    with watching(model, watch):
        return body_of(model)(
            input_ids=queries.take(rows.input_ids_BL),
            position_ids=queries.take(rows.position_ids_BL),
            attention_mask=mask,
            past_key_values=cache_of(layers),
            use_cache=True,
        ).last_hidden_state


def _columns(cache: Any, wanted: Slots) -> Layers:
    """Keys and values of some columns of a cache."""

    def take(values_BHLD: Tensor) -> Tensor:
        return wanted.take(values_BHLD.transpose(1, 2)).transpose(1, 2)

    return tuple((take(layer.keys), take(layer.values)) for layer in cache.layers)

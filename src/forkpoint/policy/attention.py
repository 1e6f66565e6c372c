"""Who sees whom in tree rows, in the form that a model's attention takes."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from forkpoint.batching.tree import PROMPT, TreeRows
from forkpoint.policy.body import body_of, causal_lm, config_field
from forkpoint.policy.flops import body_shape
from forkpoint.policy.live import Slots
from forkpoint.types import sent

ATTENTION_SHARE = 0.2
"""Scores may cost this share of what a layer's matrices cost: a dense mask saves nothing."""

BLOCK_MASK_WIDTH = 8192
"""Width of a tree row where the mask's empty blocks are skipped."""

BLOCK = 128
"""Columns of a block of FlexAttention's mask."""

TREE_ATTENTION = ("sdpa", "eager", "flex_attention")
"""Attention implementations of transformers that take a mask of their caller's."""

KNOWN_WINDOWS = ("sliding_window", "max_window_layers", "keep_window_size")
"""Fields of a config that bound nothing where ``takes_masks`` finds no sliding layer and sequences
are no longer than ``exact_length``."""


def tree_arguments(model: Any, rows: TreeRows) -> dict[str, Any]:
    """What a model is called with to run tree rows that lie on its device.

    Rows of one prompt and one completion each are plain causal rows, and padding on their right is
    seen by nothing: without a mask and positions attention runs its fastest kernel.
    """
    if _flexible(model):
        mask = tree_blocks(rows)
    elif rows.plain:
        return {"input_ids": rows.input_ids_BL}
    else:
        mask = dense_mask(model, rows.visible_BLL())
    return {
        "input_ids": rows.input_ids_BL,
        "position_ids": rows.position_ids_BL,
        "attention_mask": mask,
    }


def dense_mask(model: Any, visible_BQK: Tensor) -> Tensor:
    """An additive mask [lines, 1, queries, keys]: 0 where a query sees a key.

    Args:
        visible_BQK: bool, on the model's device.
    """
    hidden = torch.finfo(model.dtype).min
    mask = torch.full(visible_BQK.shape, hidden, dtype=model.dtype, device=visible_BQK.device)
    return mask.masked_fill_(visible_BQK, 0)[:, None]


def slot_mask(model: Any, rows: TreeRows, queries: Slots, keys: Slots) -> Any:
    """The mask of some positions of tree rows that run as queries, over the keys of some columns.

    Args:
        queries: those that run; an empty slot sees itself alone.
        keys: the columns whose keys attention is given, of which the last are the queries' own.
    """
    if _flexible(model):
        return slot_blocks(rows, queries, keys)
    return dense_mask(model, visible_to_slots(rows, queries, keys))


def visible_to_slots(
    rows: TreeRows, queries: Slots, keys: Slots, slots: slice = slice(None)
) -> Tensor:
    """bool [lines, some of the S slots, K]: what the tokens in them see of the keys."""
    columns_BC, count = queries.columns_BS[:, slots], queries.columns_BS.shape[1]
    visible_BCK = rows.visible_BSK(columns_BC, keys.columns_BS)
    visible_BCK &= queries.filled_BS[:, slots, None]
    visible_BCK &= keys.filled_BS[:, None]
    slot_S = torch.arange(count, device=columns_BC.device)
    visible_BCK[:, :, -count:] |= slot_S == slot_S[slots, None]
    return visible_BCK


def tree_blocks(rows: TreeRows) -> Any:
    """FlexAttention's mask of tree rows: which blocks are seen in part, which as a whole, and for
    the former who sees whom by tree and branch. No dense mask is made."""
    tree_BL, branch_BL = rows.tree_BL, rows.branch_BL

    def sees(line: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        mine = (branch_BL[line, key] == branch_BL[line, query]) | (branch_BL[line, key] == PROMPT)
        return (key <= query) & (tree_BL[line, key] == tree_BL[line, query]) & mine

    partly, wholly = (sent(x, tree_BL.device) for x in seen_blocks(rows, BLOCK))
    width = tree_BL.shape[1]
    return _block_mask(partly, wholly, sees, (width, width))


def slot_blocks(rows: TreeRows, queries: Slots, keys: Slots) -> Any:
    """FlexAttention's mask of ``slot_mask``, found ``BLOCK`` slots at a time."""
    tree_BL, branch_BL = rows.tree_BL, rows.branch_BL
    count, slots = keys.columns_BS.shape[1], queries.columns_BS.shape[1]

    def sees(line: Tensor, head: Tensor, slot: Tensor, place: Tensor) -> Tensor:
        # blocks reach beyond the last slot and key
        slot, place = slot.clamp(max=slots - 1), place.clamp(max=count - 1)
        key, query = keys.columns_BS[line, place], queries.columns_BS[line, slot]
        branch = branch_BL[line, key]
        mine = (branch == branch_BL[line, query]) | (branch == PROMPT)
        there = keys.filled_BS[line, place] & queries.filled_BS[line, slot]
        seen = (key <= query) & (tree_BL[line, key] == tree_BL[line, query]) & mine & there
        return seen | (place == count - slots + slot)

    partly, wholly = [], []
    for begin in range(0, slots, BLOCK):
        visible = visible_to_slots(rows, queries, keys, slice(begin, begin + BLOCK))
        blocks = pad(visible, (0, -visible.shape[2] % BLOCK)).unflatten(2, (-1, BLOCK))
        every = blocks.all(3).all(1) & (visible.shape[1] == BLOCK)
        partly.append(blocks.any(3).any(1) & ~every)
        wholly.append(every)
    return _block_mask(torch.stack(partly, 1), torch.stack(wholly, 1), sees, (slots, count))


def _block_mask(
    partly_BNM: Tensor, wholly_BNM: Tensor, sees: Callable[..., Tensor], lengths: tuple[int, int]
) -> Any:
    """FlexAttention's mask, of which blocks of keys a block of queries sees; of those seen in part
    ``sees`` tells which. ``lengths``: queries and keys."""
    from torch.nn.attention.flex_attention import BlockMask

    found = [x[:, None] for x in (partly_BNM, wholly_BNM)]
    counts = [x.sum(-1, dtype=torch.int32) for x in found]
    first = [(~x).int().argsort(dim=-1, stable=True).int() for x in found]
    return BlockMask.from_kv_blocks(
        *(counts[0], first[0], counts[1], first[1]),
        BLOCK_SIZE=BLOCK,
        mask_mod=sees,
        seq_lengths=lengths,
    )


def seen_blocks(rows: TreeRows, block: int) -> tuple[Tensor, Tensor]:
    """bool [lines, N, N] twice, of blocks of queries by blocks of keys: those that may be seen in
    part, and those of which every query sees every key."""
    lines, width = rows.input_ids_BL.shape
    count = -(-width // block)
    some_BNN = np.zeros((lines, count, count), dtype=bool)
    every_BNN = np.zeros_like(some_BNN)
    prompt = (slice(0), slice(0))
    for line, begin, _, first, size in rows.pieces_N5.tolist():
        end = begin + size
        touched = slice(
            begin // block, -(-end // block)
        )  # the blocks that hold a part of a stretch
        filled = slice(-(-begin // block), end // block)  # those that it fills
        prompt = prompt if first else (touched, filled)
        for seen_touched, seen_filled in (prompt, (touched, filled)):
            some_BNN[line, touched, seen_touched] = True
            every_BNN[line, filled, seen_filled] = True
    some_BNN |= np.eye(count, dtype=bool)  # padding sees itself
    every_BNN = np.tril(every_BNN, -1)
    return torch.from_numpy(np.tril(some_BNN) & ~every_BNN), torch.from_numpy(every_BNN)


def row_width(model: Any) -> int:
    """Tokens in a tree row: the attention of a row of W tokens computes W^2 pairs.

    4 W A = ATTENTION_SHARE x 2 M,    M weights of a layer's matrices, A attention width
    """
    if _flexible(model):
        return BLOCK_MASK_WIDTH
    matrices, attention = body_shape(body_of(model))
    return max(1, round(ATTENTION_SHARE * matrices / (2 * attention)))


def takes_masks(model: Any) -> str | None:
    """Why a model's attention cannot obey a mask of its caller's in every layer, or None.

    FlashAttention takes none. Layers with a sliding window, with chunks or with a state of their
    own make their mask themselves, and ours would stand in its place.
    """
    config = causal_lm(model).config.get_text_config()
    attention = config._attn_implementation
    if attention not in TREE_ATTENTION:
        return f"{attention} takes no mask"
    others = sorted(set(config_field(config, "layer_types", [])) - {"full_attention"})
    if others:
        return f"it has layers of {' and '.join(others)}"
    if config_field(config, "sliding_window") and config_field(config, "use_sliding_window", True):
        return f"it has a sliding window of {config.sliding_window} tokens"
    return None


def hidden_windows(model: Any) -> list[int]:
    """Widths in a model's config that may bound what a token sees, by the names of its fields,
    beside those that ``takes_masks`` knows."""
    fields = causal_lm(model).config.get_text_config().to_dict()
    return [
        value
        for name, value in fields.items()
        if isinstance(value, int) and not isinstance(value, bool)
        if name not in KNOWN_WINDOWS
        if "window" in name or name in ("attention_chunk_size", "index_topk")
    ]


def _flexible(model: Any) -> bool:
    return model.config._attn_implementation == "flex_attention"

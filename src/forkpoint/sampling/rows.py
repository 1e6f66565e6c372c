"""Rows that grow side by side: prompts read once, then a token a pass for every row.

Where a model keeps its past depends on its layers, and so does whether a prompt may be padded. Both
are found by trial when the engine is built (``settle_decoding``).
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from forkpoint.entropy.logits import logits_stats
from forkpoint.errors import ModelError
from forkpoint.policy.body import body_of, causal_lm, name_of
from forkpoint.policy.checks import FAULTS, first_line, gap_nats, plain_stats, same_nats, some_ids
from forkpoint.policy.head import head_of, known_head
from forkpoint.sampling.decoding import (
    cache_bytes,
    drop_columns,
    growing_cache,
    join_caches,
    shared_heads,
)

CACHE_ARGUMENTS = ("past_key_values", "cache_params")
"""What a model of transformers may call its cache."""

STEPS = 12
"""Tokens that a trial of decoding appends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoding:
    """How a model is run a token at a time."""

    argument: str
    """Under which the model's forward takes its cache."""
    new_cache: Callable[[], Any]
    pads: bool
    """Whether prompts of different lengths may stand side by side."""
    knows_head: bool = True
    """Whether ``policy.head`` can make the logits of a 16-bit model: in float32, as the trainer
    does, and not rounded to 16 bits, as the model itself does."""
    shares_heads: bool = False
    """Whether the model may attend as ``decoding.shared_heads`` does: models that look at the name
    of their attention may not."""
    joins: bool = False
    """Whether new rows may be joined to a running batch; only with ``decoding.growing_cache``."""

    def attention(self, model: Any) -> AbstractContextManager[None]:
        """The context in which to run the model."""
        return shared_heads(model) if self.shares_heads else nullcontext()


PLAIN = Decoding(
    argument="past_key_values", new_cache=growing_cache, pads=True, shares_heads=True, joins=True
)
"""For models whose layers are attention, sliding windows among them."""


class Rows:
    """The state of some rows: the model's cache, and which columns hold tokens."""

    def __init__(self, model: Any, decoding: Decoding) -> None:
        self._model = model
        self._decoding = decoding
        head = model.get_output_embeddings()
        sixteen_bits = head is not None and head.weight.dtype.itemsize == 2
        self._exact_head = decoding.knows_head and sixteen_bits
        self._runs = body_of(model) if self._exact_head else causal_lm(model)
        self._given = _parameters(self._runs)
        self.cache: Any = decoding.new_cache()
        self.mask_BL = torch.zeros(0, 0, dtype=torch.int64)
        self._same_age = True

    @property
    def width(self) -> int:
        """Columns; every row ends at the last one."""
        return self.mask_BL.shape[1]

    def read(self, prompts: Sequence[tuple[int, ...]]) -> Tensor:
        """Logits [B, V] after each row's prompt; equal prompts are read once."""
        logits_PV, lines_B = self._read(prompts)
        self.keep(lines_B)
        return logits_PV[lines_B]

    def admit(self, prompts: Sequence[tuple[int, ...]]) -> Tensor:
        """Read the prompts of N new rows, which go on below the present ones: logits [N, V]."""
        new = Rows(self._model, self._decoding)
        logits_PV, lines_N = new._read(prompts)
        width = max(self.width, new.width)
        join_caches(self.cache, new.cache, lines_N, width)
        masks = (self.mask_BL, new.mask_BL[lines_N])
        self.mask_BL = torch.cat([pad(mask, (width - mask.shape[1], 0)) for mask in masks])
        self._same_age = False
        return logits_PV[lines_N]

    def _read(self, prompts: Sequence[tuple[int, ...]]) -> tuple[Tensor, Tensor]:
        """Logits [P, V] after each different prompt, and which of them each row's is."""
        unique = list(dict.fromkeys(prompts))
        width = max(map(len, unique))
        ids_PL = torch.zeros(len(unique), width, dtype=torch.int64)
        mask_PL = torch.zeros_like(ids_PL)
        for line, prompt in enumerate(unique):  # left padding: all rows grow at the right edge
            ids_PL[line, width - len(prompt) :] = torch.tensor(prompt)
            mask_PL[line, width - len(prompt) :] = 1
        self.mask_BL = mask_PL.to(self._model.device)
        logits_PV = self._run(ids_PL, (self.mask_BL.cumsum(-1) - 1).clamp(min=0))
        index = {prompt: line for line, prompt in enumerate(unique)}
        return logits_PV, torch.tensor([index[p] for p in prompts], device=self._model.device)

    def keep(self, lines_B: Tensor) -> None:
        """Go on with these rows, in this order; a row may be taken several times.

        Columns that none of them uses are dropped. So the width is that of the longest row: rows
        that began together use the first column as long as they are in the batch.
        """
        lines_B = lines_B.to(self.mask_BL.device)
        self.mask_BL = self.mask_BL[lines_B]
        if not self._same_age:
            unused = int(self.mask_BL.amax(0).argmax())
            self.mask_BL = self.mask_BL[:, unused:]
            drop_columns(self.cache, unused)
        # Public in every cache of transformers, and right for every kind of layer, however many
        # rows are asked for.
        self.cache.reorder_cache(lines_B)

    def step(self, tokens_B: Tensor) -> Tensor:
        """Append a token to each row: logits [B, V] after it."""
        mask_BL = self.mask_BL
        self.mask_BL = torch.cat([mask_BL, mask_BL.new_ones(len(mask_BL), 1)], dim=1)
        return self._run(tokens_B[:, None], self.mask_BL.sum(1, keepdim=True) - 1)

    def _run(self, ids_BL: Tensor, positions_BL: Tensor) -> Tensor:
        optional = {
            "attention_mask": self.mask_BL if self._decoding.pads else None,
            "position_ids": positions_BL,
            "logits_to_keep": 1,
        }
        output = self._runs(
            input_ids=ids_BL.to(self._model.device),
            use_cache=True,
            **{self._decoding.argument: self.cache},
            **{name: value for name, value in optional.items() if name in self._given},
        )
        if self._exact_head:
            return head_of(self._model).logits(output.last_hidden_state[:, -1])
        return output.logits[:, -1]


def settle_decoding(model: Any) -> Decoding:
    """The first way to decode under which growing rows give what plain full passes give.

    Raises:
        ModelError: naming the class and what was found, where none does.
    """
    fault = "its forward takes no cache that transformers could make"
    for decoding in _ways(model):
        found = decoding_fault(model, decoding)
        if found is None:
            return decoding
        fault = found
    raise ModelError(
        f"{name_of(model)} cannot be sampled a token at a time by this engine ({fault}); use "
        "another rollout.engine or another model"
    )


@torch.no_grad()
def decoding_fault(model: Any, decoding: Decoding) -> str | None:
    """What is wrong with a way to decode, or None: a few tokens of rows against plain passes.

    The prompts have different lengths where they may; two rows share one; a row ends early, and
    begins again where rows may join.
    """
    starts = (4, 4, 16) if decoding.pads else (6, 6, 6)
    ids_BL = some_ids(model, 3, max(starts) + STEPS)
    ids_BL[1, : starts[1]] = ids_BL[0, : starts[0]]
    try:
        with decoding.attention(model):
            grown = list(_grow(model, decoding, ids_BL, starts))
        plain_BL = [plain_stats(model, ids_BL[b : b + 1, : starts[b] + STEPS]) for b in range(3)]
    except FAULTS as error:
        return first_line(error)
    gaps = [
        gap_nats(stats, tuple(x_BL[:, column - 1] for x_BL in plain_BL[b]))
        for b, column, stats in grown
    ]
    gap = sum(gaps) / len(gaps)
    return None if gap <= same_nats(model) else f"its entropies come out {gap:.2g} nats off"


def _grow(
    model: Any, decoding: Decoding, ids_BL: Tensor, starts: Sequence[int]
) -> Iterator[tuple[int, int, tuple[Tensor, Tensor]]]:
    """(row, column, (ln p, H)) of the tokens that follow three prompts, as rows give them."""
    rows, lines, columns = Rows(model, decoding), [0, 1, 2], list(starts)
    prompts = [tuple(ids_BL[b, : starts[b]].tolist()) for b in lines]
    logits_BV = rows.read(prompts)
    for step in range(STEPS):
        tokens_B = ids_BL[lines, columns]
        logprobs_B, entropies_B, _ = logits_stats(logits_BV, tokens_B.to(logits_BV.device), 1.0)
        for line, (b, column) in enumerate(zip(lines, columns, strict=True)):
            yield b, column, (logprobs_B[line : line + 1], entropies_B[line : line + 1])
        if step == 1:
            rows.keep(torch.tensor([0, 2]))
            lines, columns, tokens_B = [0, 2], [columns[0], columns[2]], tokens_B[[0, 2]]
        logits_BV = rows.step(tokens_B)
        columns = [column + 1 for column in columns]
        if step == 3 and decoding.joins:
            logits_BV = torch.cat([logits_BV, rows.admit([prompts[1]])])
            lines, columns = [*lines, 1], [*columns, starts[1]]


@torch.no_grad()
def row_bytes(model: Any, decoding: Decoding) -> tuple[float, float]:
    """Bytes that a row's cache takes whatever its length, and those of each of its tokens.

    From the caches of two short prompts. A layer with a sliding window, which holds less of a long
    row, is counted as if it held all.
    """
    short, long = 8, 16
    found = []
    for length in (short, long):
        rows = Rows(model, decoding)
        rows.read([tuple(some_ids(model, 1, length)[0].tolist())])
        found.append(cache_bytes(rows.cache))
    each = (found[1] - found[0]) / (long - short)
    return found[0] - short * each, each


def _ways(model: Any) -> Iterator[Decoding]:
    """What may work, cheapest first."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    inner = causal_lm(model)
    argument = next((name for name in CACHE_ARGUMENTS if name in _parameters(inner)), None)
    if argument is None:
        return

    def own_cache() -> Any:
        return DynamicCache(config=inner.config)

    try:
        kinds = {type(layer) for layer in own_cache().layers}
    except FAULTS:
        kinds = {DynamicLayer}
    known = known_head(model) is not None
    if argument == PLAIN.argument and kinds <= {DynamicLayer, DynamicSlidingWindowLayer}:
        plain = PLAIN if known else replace(PLAIN, knows_head=False)
        yield plain
        yield replace(plain, joins=False)
    for pads in (True, False):
        yield Decoding(argument=argument, new_cache=own_cache, pads=pads, knows_head=known)


def _parameters(model: Any) -> set[str]:
    return set(inspect.signature(model.forward).parameters)

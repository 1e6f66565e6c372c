"""Sequences as tree rows: a prompt once, several of its completions behind it, no padding between.

    | prompt | completion 1 | completion 2 | prompt' | completion 1' | ...

A token attends to its own prompt and its own completion, up to itself; positions restart after the
prompt. So each completion is predicted exactly as if it stood alone behind its prompt, and the
prompt is run once. Several such trees share a row, and rows are filled to a length.
"""

import heapq
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from forkpoint.batching.padding import PaddedRows, Wanted, wanted_rows
from forkpoint.types import TokenBatch, spans

NOTHING = -1
"""The tree of padding at the end of a row."""

PROMPT = -1
"""The branch of a prompt's tokens."""

Piece: TypeAlias = tuple[int, int, int, int, int]
"""(line, tree, sequence, first token, tokens) of a stretch of a sequence; its first token counts
from the prompt's beginning, so it is 0 for a prompt and not 0 for a completion."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeRows(PaddedRows):
    """The same of tree rows, with who sees whom."""

    position_ids_BL: Tensor
    """int64 [lines, L], of each token in its own prompt + completion."""
    tree_BL: Tensor
    """int64 [lines, L], which tree of its row a token belongs to; ``NOTHING``."""
    branch_BL: Tensor
    """int64 [lines, L], the sequence it belongs to; ``PROMPT``: to all of its tree."""
    pieces_N5: np.ndarray
    """int64 [N, 5], every stretch laid out: line, first column, sequence, first token, tokens. The
    first token counts from the prompt's beginning. A prompt is under the first sequence that uses
    it, and its completions follow it."""

    @property
    def plain(self) -> bool:
        """Whether each row is one prompt and one completion: causal attention is all it needs."""
        return len(self.pieces_N5) == 2 * len(np.unique(self.pieces_N5[:, 0]))

    def visible_BLL(self) -> Tensor:
        """bool [lines, L, L]: whether a token (row) attends to another (column)."""
        return self.visible_BSL(self._everything())

    def visible_BSL(self, columns_BS: Tensor) -> Tensor:
        """bool [lines, S, L]: whether the token in a column attends to another."""
        return self.visible_BSK(columns_BS, self._everything())

    def visible_BSK(self, columns_BS: Tensor, keys_BK: Tensor) -> Tensor:
        """bool [lines, S, K]: whether the token in a column sees that in one of ``keys_BK``."""
        tree_BS, branch_BS = (x.gather(1, columns_BS) for x in (self.tree_BL, self.branch_BL))
        tree_BK, branch_BK = (x.gather(1, keys_BK) for x in (self.tree_BL, self.branch_BL))
        # In place: there are two of these at once, not five.
        visible_BSK = branch_BS[:, :, None] == branch_BK[:, None, :]
        visible_BSK |= (branch_BK == PROMPT)[:, None, :]
        visible_BSK &= tree_BS[:, :, None] == tree_BK[:, None, :]
        visible_BSK &= keys_BK[:, None, :] <= columns_BS[:, :, None]
        return visible_BSK

    def _everything(self) -> Tensor:
        width = self.tree_BL.shape[1]
        return torch.arange(width, device=self.tree_BL.device).expand(self.tree_BL.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """What packing goes by, of B sequences."""

    prompts: list[bytes]
    """The token ids of each prompt; equal ones are one prompt."""
    prompt_lengths: list[int]
    ends: list[int]
    """Tokens of each completion that are run; -1: nothing of the sequence is."""

    def take(self, sequences: Sequence[int]) -> "Sizes":
        """What packing some of the sequences goes by; they are numbered from 0."""
        fields = {name: [getattr(self, name)[b] for b in sequences] for name in self.__slots__}
        return Sizes(**fields)

    def pack(self, width: int) -> list[list[int]]:
        """The sequences of each tree row: those with a wanted token, cut before the last one.

        A prompt's completions make the fewest trees that fit; a row takes trees by falling length,
        each into the first row with room. A tree longer than ``width`` has a row of its own. A pass
        of some rows is packed once more, by itself, when it is laid out: nearly always into these
        rows.
        """
        trees = [tree for group in self._by_prompt() for tree in self._split(group, width)]
        sizes = [self.prompt_lengths[t[0]] + sum(self.ends[b] for b in t) for t in trees]
        rows: list[list[int]] = []
        room = np.empty(len(trees), dtype=np.int64)  # of each row
        for index in sorted(range(len(trees)), key=lambda i: (-sizes[i], trees[i][0])):
            fits = room[: len(rows)] >= sizes[index]
            row = int(fits.argmax()) if fits.any() else len(rows)
            if row == len(rows):
                rows.append([])
                room[row] = width
            rows[row] += trees[index]
            room[row] -= sizes[index]
        return rows

    def row_length(self, row: Sequence[int]) -> int:
        """Tokens that a row lays out."""
        return sum(size for *_, size in self.pieces(0, row))

    def pieces(self, line: int, row: Sequence[int]) -> Iterator[Piece]:
        """The stretches of a row, from left to right."""
        tree, prompt = NOTHING, b""
        for b in row:
            if self.prompts[b] != prompt:
                prompt, tree = self.prompts[b], tree + 1
                yield line, tree, b, 0, self.prompt_lengths[b]
            yield line, tree, b, self.prompt_lengths[b], self.ends[b]

    def _by_prompt(self) -> list[list[int]]:
        """The sequences to run, those of one prompt together, by rising length."""
        groups: defaultdict[bytes, list[int]] = defaultdict(list)
        running = (b for b, end in enumerate(self.ends) if end >= 0)
        for b in sorted(running, key=lambda b: (self.ends[b], b)):
            groups[self.prompts[b]].append(b)
        return list(groups.values())

    def _split(self, group: Sequence[int], width: int) -> list[list[int]]:
        """The fewest trees of a group that fit in ``width``, about equally long.

        Equally long, because a pass is as wide as its longest row, and because the attention of a
        row grows with the square of its length. Each sequence, longest first, goes to the shortest
        tree.
        """
        space = width - self.prompt_lengths[group[0]]
        fewest = -(-sum(self.ends[b] for b in group) // max(1, space))
        count = min(len(group), max(1, fewest))
        while True:
            trees: list[list[int]] = [[] for _ in range(count)]
            heap = [(0, 0, tree) for tree in range(count)]  # tokens, sequences, which
            for b in reversed(group):
                tokens, sequences, tree = heap[0]
                trees[tree].append(b)
                heapq.heapreplace(heap, (tokens + self.ends[b], sequences + 1, tree))
            if count == len(group) or max(heap)[0] <= space:
                return [tree[::-1] for tree in trees]  # by rising length
            count += 1


def sizes_of(batch: TokenBatch, wanted: Wanted) -> Sizes:
    """What packing goes by in a pass that predicts the wanted tokens."""
    return Sizes(
        prompts=[p.numpy().tobytes() for p in batch.prompts_B],
        prompt_lengths=[len(p) for p in batch.prompts_B],
        ends=wanted.ends_B.tolist(),
    )


def lay_trees(batch: TokenBatch, wanted_T: Tensor, width: int) -> TreeRows:
    """Lay a batch out for a forward pass that predicts the tokens ``wanted_T`` (bool [T])."""
    wanted = wanted_rows(batch, wanted_T)
    sizes = sizes_of(batch, wanted)
    rows = sizes.pack(width)
    found = [piece for line, row in enumerate(rows) for piece in sizes.pieces(line, row)]
    line_N, tree_N, sequence_N, first_N, size_N = np.array(found, dtype=np.int64).reshape(-1, 5).T
    begin_N = size_N.cumsum() - size_N
    column_N = begin_N - begin_N[np.searchsorted(line_N, line_N)]  # of a line's first piece: 0
    # A model cannot run on nothing, so there is one token at least.
    lines, longest = max(1, len(rows)), int((column_N + size_N).max(initial=1))
    places = torch.from_numpy(spans(line_N * longest + column_N, size_N))

    def rectangle(values: np.ndarray | Tensor, empty: int) -> Tensor:
        filled = torch.full((lines * longest,), empty)
        filled[places] = torch.as_tensor(values)
        return filled.view(lines, longest)

    tokens = [
        (batch.completions_B if first else batch.prompts_B)[sequence][:size]
        for _, _, sequence, first, size in found
    ]
    ids = torch.cat(tokens) if tokens else torch.zeros(0, dtype=torch.int64)
    branch_N = np.where(first_N > 0, sequence_N, PROMPT)
    # Where each sequence's first token is predicted, and where its completion begins.
    prompt_N = np.maximum.accumulate(np.where(first_N == 0, np.arange(len(found)), 0))
    ends_N = (column_N + size_N - 1)[prompt_N]
    place_B3 = np.zeros((batch.num_sequences, 3), dtype=np.int64)
    behind = first_N > 0
    place_B3[sequence_N[behind]] = np.stack([line_N, ends_N, column_N], axis=1)[behind]
    line_R, prompt_R, column_R = place_B3[wanted.sequence_R].T
    after_R = column_R + wanted.position_R - 1
    return TreeRows(
        input_ids_BL=rectangle(ids, 0),
        position_ids_BL=rectangle(spans(first_N, size_N), 0),
        tree_BL=rectangle(np.repeat(tree_N, size_N), NOTHING),
        branch_BL=rectangle(np.repeat(branch_N, size_N), PROMPT),
        pieces_N5=np.stack([line_N, column_N, sequence_N, first_N, size_N], axis=1),
        line_R=torch.from_numpy(line_R.copy()),
        column_R=torch.from_numpy(np.where(wanted.position_R == 0, prompt_R, after_R)),
        rows_R=torch.from_numpy(wanted.rows_R),
    )

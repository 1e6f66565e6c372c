"""Sequences as tree rows: a prompt once, several of its completions behind it, no padding between.

    | prompt | completion 1 | completion 2 | prompt' | completion 1' | ...

A token attends to its own prompt and its own completion, up to itself; positions restart after the
prompt. So each completion is predicted exactly as if it stood alone behind its prompt, and the
prompt is run once. Several such trees share a row, and rows are filled to a length.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from forkpoint.types import TokenBatch

NOTHING = -1
"""The tree of padding at the end of a row."""

PROMPT = -1
"""The branch of a prompt's tokens."""


Piece: TypeAlias = tuple[int, int, int, int, int]
"""(line, first column, sequence, first token, tokens) of a stretch of a sequence; its first token
counts from the prompt's beginning."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeRows:
    """The rectangle a model runs on, who sees whom, and its map back to the batch's rows."""

    input_ids_BL: Tensor
    """int64 [lines, L], 0 where there is nothing."""
    position_ids_BL: Tensor
    """int64 [lines, L], of each token in its own prompt + completion."""
    tree_BL: Tensor
    """int64 [lines, L], which tree of its row a token belongs to; ``NOTHING``."""
    branch_BL: Tensor
    """int64 [lines, L], the sequence it belongs to; ``PROMPT``: to all of its tree."""
    pieces: tuple[Piece, ...]
    """Every stretch laid out. A prompt is under the first sequence that uses it."""
    line_R: Tensor
    """int64 [R], the line of the rectangle where each wanted row is predicted."""
    column_R: Tensor
    """int64 [R], the column of the same."""
    rows_R: Tensor
    """int64 [R], the wanted rows: indices into the batch's ``_T`` streams, ascending."""

    def visible_BLL(self) -> Tensor:
        """bool [lines, L, L]: whether a token (row) attends to another (column)."""
        width = self.input_ids_BL.shape[1]
        before_LL = torch.ones(width, width, dtype=torch.bool).tril()
        same_BLL = self.tree_BL[:, :, None] == self.tree_BL[:, None, :]
        branch_BLL = self.branch_BL[:, :, None] == self.branch_BL[:, None, :]
        return before_LL & same_BLL & (branch_BLL | (self.branch_BL == PROMPT)[:, None, :])


def pack_trees(batch: TokenBatch, wanted_T: Tensor, width: int) -> list[list[int]]:
    """The sequences of each tree row: those with a wanted token, cut before the last one.

    A prompt's completions make the fewest trees that fit; a row takes trees by falling length,
    each into the first row with room. A tree longer than ``width`` has a row of its own. A pass of
    some rows is packed once more, by itself, when it is laid out: nearly always into these rows.
    """
    ends = _ends(batch, wanted_T)
    trees = [
        tree for group in _by_prompt(batch, ends) for tree in _split(batch, group, ends, width)
    ]
    sizes = [_tree_size(batch, tree, ends) for tree in trees]
    rows: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(trees)), key=lambda i: (-sizes[i], trees[i][0])):
        for row, left in enumerate(room):
            if sizes[index] <= left:
                rows[row] += trees[index]
                room[row] -= sizes[index]
                break
        else:
            rows.append(list(trees[index]))
            room.append(width - sizes[index])
    return rows


def row_lengths(batch: TokenBatch, wanted_T: Tensor, rows: Sequence[Sequence[int]]) -> list[int]:
    """Tokens that each of these rows lays out."""
    ends = _ends(batch, wanted_T)
    return [_row_length(list(_lay_line(batch, ends, 0, row))) for row in rows]


def lay_trees(batch: TokenBatch, wanted_T: Tensor, width: int) -> TreeRows:
    """Lay a batch out for a forward pass that predicts the tokens ``wanted_T`` (bool [T])."""
    ends = _ends(batch, wanted_T)
    lines = [
        list(_lay_line(batch, ends, line, row))
        for line, row in enumerate(pack_trees(batch, wanted_T, width))
    ]
    longest = max(map(_row_length, lines), default=1)
    shape = (max(1, len(lines)), longest)  # a model cannot run on nothing
    ids, positions, trees, branches = (torch.full(shape, x) for x in (0, 0, NOTHING, PROMPT))
    read_at: dict[int, tuple[int, int, int]] = {}
    pieces = []
    for line, laid in enumerate(lines):
        prompt_end = 0
        for piece, tree in laid:
            _, column, sequence, first, size = piece
            pieces.append(piece)
            here = slice(column, column + size)
            tokens = torch.cat([batch.prompts_B[sequence], batch.completions_B[sequence]])
            ids[line, here] = tokens[first : first + size]
            positions[line, here] = torch.arange(first, first + size)
            trees[line, here] = tree
            if first:
                branches[line, here] = sequence
                read_at[sequence] = (line, prompt_end, column)
            else:
                prompt_end = column + size - 1
    line_B, prompt_B, column_B = (
        torch.tensor(
            [read_at.get(b, (0, 0, 0)) for b in range(batch.num_sequences)], dtype=torch.int64
        )
        .reshape(-1, 3)
        .T
    )
    rows_R = wanted_T.nonzero().flatten()
    sequence_R, position_R = batch.sequence_T[rows_R], batch.position_T[rows_R]
    return TreeRows(
        input_ids_BL=ids,
        position_ids_BL=positions,
        tree_BL=trees,
        branch_BL=branches,
        pieces=tuple(pieces),
        line_R=line_B[sequence_R],
        column_R=torch.where(
            position_R == 0, prompt_B[sequence_R], column_B[sequence_R] + position_R - 1
        ),
        rows_R=rows_R,
    )


def _ends(batch: TokenBatch, wanted_T: Tensor) -> dict[int, int]:
    """Sequence -> completion tokens to run: those before its last wanted one."""
    rows = wanted_T.nonzero().flatten()
    ends_B = torch.full((batch.num_sequences,), -1).scatter_reduce(
        0, batch.sequence_T[rows], batch.position_T[rows], reduce="amax"
    )
    return {b: end for b, end in enumerate(ends_B.tolist()) if end >= 0}


def _by_prompt(batch: TokenBatch, ends: dict[int, int]) -> list[list[int]]:
    """The sequences to run, those of one prompt together, by rising length."""
    groups: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)
    for b in sorted(ends, key=lambda b: (ends[b], b)):
        groups[tuple(batch.prompts_B[b].tolist())].append(b)
    return list(groups.values())


def _split(
    batch: TokenBatch, group: Sequence[int], ends: dict[int, int], width: int
) -> list[list[int]]:
    """The fewest trees of a group that fit in ``width``, about equally long.

    Equally long, because a pass is as wide as its longest row, and because the attention of a row
    grows with the square of its length. Each sequence, longest first, goes to the shortest tree.
    """
    count = 0
    while True:
        count += 1
        trees: list[list[int]] = [[] for _ in range(count)]
        for b in reversed(group):
            min(trees, key=lambda tree: (sum(ends[x] for x in tree), len(tree))).append(b)
        if count == len(group) or all(_tree_size(batch, t, ends) <= width for t in trees):
            return [tree[::-1] for tree in trees]  # by rising length


def _tree_size(batch: TokenBatch, tree: Sequence[int], ends: dict[int, int]) -> int:
    return len(batch.prompts_B[tree[0]]) + sum(ends[b] for b in tree)


def _row_length(laid: Sequence[tuple[Piece, int]]) -> int:
    return sum(size for (*_, size), _ in laid)


def _lay_line(
    batch: TokenBatch, ends: dict[int, int], line: int, row: Sequence[int]
) -> Iterator[tuple[Piece, int]]:
    """The pieces of a row, each with the number of its tree."""
    column, tree, prompt = 0, NOTHING, ()
    for b in row:
        tokens = tuple(batch.prompts_B[b].tolist())
        if tokens != prompt:
            prompt, tree = tokens, tree + 1
            yield (line, column, b, 0, len(prompt)), tree
            column += len(prompt)
        yield (line, column, b, len(prompt), ends[b]), tree
        column += ends[b]

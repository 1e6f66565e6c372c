"""Token stores made by hand, for the tests of the viewer."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from forkpoint.runs.tokens import COMPLETIONS, TOKENS, CompletionRow, TokenColumns, TokenStore


def make_completion(
    number: int = 0,
    sample: int = 0,
    *,
    texts: Sequence[str] = ("a", " b"),
    ids: Sequence[int] | None = None,
    entropies: Sequence[float] | None = None,
    logprobs: Sequence[float] | np.ndarray | None = None,
    top: Sequence[Sequence[tuple[int, float]]] | None = None,
    **fields: Any,
) -> tuple[CompletionRow, TokenColumns]:
    """A completion and what is known of its tokens; what is not given is made up.

    Args:
        top: (token id, probability) of the likely tokens of each token.
    """
    length = len(texts)
    ids = list(range(length)) if ids is None else list(ids)
    top = [[(i, 0.75)] for i in ids] if top is None else top
    row: dict[str, Any] = {
        "prompt_id": f"p{number}",
        "prompt": "say a b",
        "completion": "".join(texts),
        "reward": 1.0,
        "finish_reason": "stop",
        "prompt_token_ids": [0],
        **fields,
    }
    width = len(top[0]) if top else 0
    columns = TokenColumns(
        texts=list(texts),
        logprobs_T=np.asarray([-0.25] * length if logprobs is None else logprobs, np.float32),
        entropies_T=np.asarray([0.5] * length if entropies is None else entropies, np.float32),
        top_ids_TK=np.array([i for one in top for i, _ in one], np.int32).reshape(length, width),
        top_logprobs_TK=np.log(
            np.array([p for one in top for _, p in one], np.float32).reshape(length, width)
        ),
    )
    return CompletionRow(sample=sample, token_ids=ids, tokens=length, **row), columns


def make_store(root: Path, *parts: Sequence[tuple[CompletionRow, TokenColumns]]) -> TokenStore:
    """The token store of a run directory, one part after the other."""
    store = TokenStore(root / "analysis")
    for number, part in enumerate(parts):
        store.write(number, root.name, [row for row, _ in part], [one for _, one in part])
    return store


WORDS = 20_000
ZIPF = np.cumsum(1 / np.arange(1, WORDS + 1)) / np.sum(1 / np.arange(1, WORDS + 1))
TEXTS = pa.array([f" w{i}" for i in range(WORDS)])


def random_store(root: Path, *, groups: int, size: int, length: int) -> TokenStore:
    """A store as a large model leaves it: words by Zipf's law, most entropies small, five
    alternatives; ``groups`` prompts with ``size`` answers of ``length`` tokens, 8 prompts a part.

    The alternatives of a token are drawn at random, which deflates worse than real ones.
    """
    random = np.random.default_rng(0)
    store = TokenStore(root / "analysis")
    for part, first in enumerate(range(0, groups, 8)):
        prompts = np.repeat(np.arange(first, min(first + 8, groups)), size)
        heads = {
            "prompt_id": [f"p{p}" for p in prompts],
            "sample": np.arange(len(prompts)) % size,
            "reward": (random.random(len(prompts)) < 0.3).astype(float),
            "finish_reason": ["stop"] * len(prompts),
        }
        tokens = {name: np.repeat(values, length) for name, values in heads.items()}
        tokens |= _random_tokens(random, len(prompts) * length)
        ids = pa.array(tokens["token_id"], pa.int32())
        completions = heads | {
            "prompt": [f"What is {p} and {p}? " * 8 for p in prompts],
            "completion": [""] * len(prompts),
            "tokens": [length] * len(prompts),
            "prompt_token_ids": [[0]] * len(prompts),
            "token_ids": pa.ListArray.from_arrays(np.arange(len(prompts) + 1) * length, ids),
        }
        tokens["run"] = [root.name] * len(ids)
        tokens["position"] = np.arange(len(ids)) % length
        _write(store.completions_path(part), pa.table(completions).select(COMPLETIONS.names))
        _write(store.tokens_path(part), pa.table(tokens).select(TOKENS.names))
    return store


def _random_tokens(random: np.random.Generator, count: int) -> dict[str, Any]:
    drawn = np.searchsorted(ZIPF, random.random((count, 5)))
    # 60 % of tokens nearly certain, as in the paper; the others exponential.
    entropies = random.exponential(np.where(random.random(count) < 0.6, 0.003, 0.8))
    chosen = np.exp(-entropies)[:, None]
    rest = -np.sort(-random.dirichlet(np.ones(5), count)[:, :4], axis=1) * (1 - chosen)
    likely = np.log(np.maximum(np.c_[chosen, rest], 1e-9))
    starts = np.arange(count + 1, dtype=np.int32) * 5
    return {
        "token_id": drawn[:, 0],
        "text": TEXTS.take(pa.array(drawn[:, 0])),
        "logprob": -entropies,
        "entropy": entropies,
        "top_ids": pa.ListArray.from_arrays(starts, drawn.ravel()),
        "top_logprobs": pa.ListArray.from_arrays(starts, likely.ravel()),
    }


def _write(path: Path, table: pa.Table) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    schema = TOKENS if "position" in table.column_names else COMPLETIONS
    pq.write_table(table.cast(schema), path, compression="zstd")

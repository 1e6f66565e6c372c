"""The k-th value by counting, against sorting everything."""

import math
from collections.abc import Iterator

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from forkpoint.selection.radix import kth_values, numbers, patterns

floats = st.floats(allow_nan=False, width=32)


@given(
    tokens=st.lists(st.tuples(st.integers(-1, 3), st.floats(0, 12, width=32)), max_size=60),
    size=st.integers(1, 9),
    share=st.sampled_from([0.0, 0.5, 0.9, 1.0]),
)
def test_kth_values_by_group_against_sorting(
    tokens: list[tuple[int, float]], size: int, share: float
) -> None:
    groups = np.array([0, 1, 2, 3, *(g for g, _ in tokens)])
    values = np.array([0.5, 0.25, 3.0, 0.0, *(v for _, v in tokens)], dtype=np.float32)
    ranks = [max(1, math.ceil(share * (groups == g).sum())) for g in range(4)]

    def read() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        return ((values[i : i + size], groups[i : i + size]) for i in range(0, len(values), size))

    found = kth_values(read, np.arange(4), np.array(ranks))
    expected = [np.sort(values[groups == g])[r - 1] for g, r in enumerate(ranks)]
    assert found.tolist() == [float(x) for x in expected]


@given(st.lists(floats, min_size=2, max_size=2))
def test_patterns_are_ordered_as_numbers_are(pair: list[float]) -> None:
    a, b = patterns(np.array(pair, dtype=np.float32)).tolist()
    assert (a < b, a == b) == (pair[0] < pair[1], pair[0] == pair[1])
    assert numbers(patterns(np.array(pair, dtype=np.float32))).tolist() == pair

"""Numbers of many tokens as short text: a typed array, deflated, in base64.

Entropies and surprisals x >= 0 are kept as q = round(8191 sqrt(x / top)), top the largest of them;
x is then known to top / 8191 at worst and to sqrt(x top) / 8191 in general: with a vocabulary of
152 000, whose entropies end at 11.9 nats, to 0.0015 nats, and to 0.0005 nats at 1 nat.
Probabilities of alternatives are kept as round(-ln p / 0.02): known to 1 %, down to 0.6 %.
"""

import base64
import math
import zlib

import numpy as np

LEVELS = 8191
"""The largest ``q``. Coarser than 16 bits, so that deflate finds something to save."""
MISSING = 65535
"""``q`` of a number that was not recorded or is not finite."""
LOG_STEP = 0.02
"""Nats between two codes of a probability."""
LEAST_PROBABILITY = math.exp(-255 * LOG_STEP)
"""0.0061: a less likely alternative has no code and is left out."""

TYPES = {1: "Uint8Array", 2: "Uint16Array", 4: "Uint32Array"}
"""JavaScript's name by the bytes of an item; it reads little-endian everywhere browsers run."""


def pack(values: np.ndarray) -> list[str]:
    """[type, base64 of the zlib stream] of unsigned integers, as tokens_data.js unpacks it."""
    little = values.astype(values.dtype.newbyteorder("<"), copy=False)
    packed = zlib.compress(np.ascontiguousarray(little).tobytes())
    return [TYPES[values.dtype.itemsize], base64.b64encode(packed).decode()]


def pack_bits(values: np.ndarray) -> list[str]:
    """``pack`` of booleans, eight in a byte, the first in its lowest bit."""
    return pack(np.packbits(values.astype(bool), bitorder="little"))


def pack_indices(values: np.ndarray, size: int) -> list[str]:
    """``pack`` of indices below ``size``, in the smallest type that holds them."""
    small = size <= MISSING + 1
    return pack(values.astype(np.uint16 if small else np.uint32))


def quantise(values: np.ndarray) -> tuple[np.ndarray, float]:
    """Codes of numbers >= 0 and their ``top``; x = top (q / 8191)^2.

    Numbers a rounding error below 0 become 0; those that are not finite become ``MISSING``.

    Returns:
        uint16, of the values' shape, and the largest value, 1 if there is none above 0.
    """
    values = np.asarray(values, dtype=np.float64)
    finite = np.isfinite(values)
    known = np.maximum(np.where(finite, values, 0.0), 0.0)
    top = float(known.max(initial=0.0)) or 1.0
    codes = np.rint(LEVELS * np.sqrt(known / top)).astype(np.uint16)
    return np.where(finite, codes, np.uint16(MISSING)), top


def restore(codes: np.ndarray, top: float) -> np.ndarray:
    """What the page reads back: float64, nan where nothing was recorded."""
    values = top * (codes.astype(np.float64) / LEVELS) ** 2
    return np.where(codes == MISSING, np.nan, values)


def probability_codes(logprobs: np.ndarray) -> np.ndarray:
    """uint8 codes of ln p, which must be at least ln ``LEAST_PROBABILITY``."""
    return np.clip(np.rint(np.asarray(logprobs, np.float64) / -LOG_STEP), 0, 255).astype(np.uint8)

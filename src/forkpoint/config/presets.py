"""Every published variant of the entropy mask and of the objective, under its name.

One table, used by the code and printed in the documentation. A preset only fills in what the
recipe leaves out; a key written in the recipe wins. Sources: the paper (arXiv 2506.01939 v1, v2),
the authors' released code, TRL 1.16, ms-swift 4.6, LightRFT; DAPO (2503.14476), Dr. GRPO
(2503.20783), GSPO (2507.18071), CISPO (2506.13585).
"""

from typing import Any

SELECTION_PRESETS: dict[str, dict[str, Any]] = {
    # Exact k over the whole step, ties broken by a total order, known before the first update.
    "forkpoint": {
        "selection": {"scope": "batch", "entropy": "auto", "ties": "order", "rounding": "ceil"},
        "loss": {"denominator": "selected"},
    },
    # Eq. 6 of v2: H >= tau with tau the k-th value, divided by the number of selected tokens.
    "paper": {
        "selection": {
            "scope": "minibatch",
            "entropy": "current",
            "ties": "keep",
            "rounding": "ceil",
        },
        "loss": {"denominator": "selected"},
    },
    # v1 divided by all tokens of the batch.
    "paper-v1": {
        "selection": {
            "scope": "minibatch",
            "entropy": "current",
            "ties": "keep",
            "rounding": "ceil",
        },
        "loss": {"denominator": "all"},
    },
    # top-k inside one micro-batch, each micro-batch's mean weighted by its share of sequences.
    "authors-code": {
        "selection": {
            "scope": "microbatch",
            "entropy": "current",
            "ties": "order",
            "rounding": "ceil",
            "zero_advantage_in_pool": True,
        },
        "loss": {"denominator": "microbatch_selected", "dual_clip": 10.0},
    },
    # torch.quantile's linear interpolation inside one micro-batch, divided by all tokens.
    "trl": {
        "selection": {
            "scope": "microbatch",
            "entropy": "current",
            "ties": "quantile",
            "rounding": "ceil",
            "zero_advantage_in_pool": True,
        },
        "loss": {"denominator": "all"},
    },
    "ms-swift": {
        "selection": {
            "scope": "microbatch",
            "entropy": "current",
            "ties": "quantile",
            "rounding": "ceil",
            "zero_advantage_in_pool": True,
        },
        "loss": {"denominator": "all"},
    },
    # Each sequence for itself, with the entropies of the sampling policy.
    "lightrft": {
        "selection": {
            "scope": "sequence",
            "entropy": "old",
            "ties": "order",
            "rounding": "floor",
            "zero_advantage_in_pool": True,
        },
        "loss": {"denominator": "sequence_selected"},
    },
}
"""Name -> settings of [selection] and [loss]."""

LOSS_PRESETS: dict[str, dict[str, Any]] = {
    "dapo": {
        "loss": {"surrogate": "ppo_clip", "clip_low": 0.2, "clip_high": 0.28},
        "advantage": {"kind": "grpo"},
    },
    "grpo": {
        "loss": {
            "surrogate": "ppo_clip",
            "clip_low": 0.2,
            "clip_high": 0.2,
            "denominator": "sequence",
        },
        "advantage": {"kind": "grpo"},
    },
    "dr_grpo": {
        "loss": {
            "surrogate": "ppo_clip",
            "clip_low": 0.2,
            "clip_high": 0.2,
            "denominator": "constant",
        },
        "advantage": {"kind": "dr_grpo"},
    },
    "gspo": {
        "loss": {
            "surrogate": "gspo",
            "clip_low": 3e-4,
            "clip_high": 4e-4,
            "denominator": "sequence",
        },
        "advantage": {"kind": "grpo"},
    },
    "cispo": {
        "loss": {"surrogate": "cispo", "clip_low": 1.0, "clip_high": 0.28},
        "advantage": {"kind": "grpo"},
    },
}
"""Name -> settings of [loss] and [advantage]. ``clip_low = 1``: no lower bound (ratio >= 0)."""


def apply_presets(raw: dict[str, Any]) -> dict[str, Any]:
    """Fill a raw configuration from the presets it names; keys already there are kept.

    The loss preset goes first, so that a loss preset's denominator (Dr. GRPO divides by a constant)
    is not overridden by the selection preset's.
    """
    loss_name = _section(raw, "loss").get("preset", "dapo")
    selection_name = _section(raw, "selection").get("preset", "forkpoint")
    out = {k: dict(v) if isinstance(v, dict) else v for k, v in raw.items()}
    for preset in (LOSS_PRESETS.get(str(loss_name)), SELECTION_PRESETS.get(str(selection_name))):
        for section, settings in (preset or {}).items():  # an unknown name fails in validation
            if isinstance(out.setdefault(section, {}), dict):
                out[section] = {**settings, **out[section]}
    return out


def _section(raw: dict[str, Any], name: str) -> dict[str, Any]:
    section = raw.get(name, {})
    return section if isinstance(section, dict) else {}

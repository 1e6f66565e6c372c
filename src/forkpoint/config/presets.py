"""Every published variant of the entropy mask and of the objective, under its name.

One table, used by the code and printed in the documentation. A preset only fills in what the
recipe leaves out; a key written in the recipe wins. Sources: the paper (arXiv 2506.01939 v1, v2),
the authors' released code, TRL 1.16, ms-swift 4.6, LightRFT; DAPO (2503.14476), Dr. GRPO
(2503.20783), GSPO (2507.18071), CISPO (2506.13585).
"""

from typing import Any

_PAPER: dict[str, Any] = {
    "selection": {"scope": "minibatch", "entropy": "current", "ties": "keep", "rounding": "ceil"},
}
_MICROBATCH = {
    "scope": "microbatch",
    "entropy": "current",
    "rounding": "ceil",
    "zero_advantage_in_pool": True,
}

SELECTION_PRESETS: dict[str, dict[str, Any]] = {
    # Exact k over the whole step, ties broken by a total order, known before the first update.
    "forkpoint": {
        "selection": {"scope": "batch", "entropy": "auto", "ties": "order", "rounding": "ceil"},
    },
    # Eq. 6 of v2: H >= tau with tau the k-th value, divided by the number of selected tokens.
    "paper": _PAPER,
    # The same selection; v1 divided by all tokens of the batch: see DENOMINATORS.
    "paper-v1": _PAPER,
    # top-k inside one micro-batch, each micro-batch's mean weighted by its share of sequences.
    "authors-code": {
        "selection": {**_MICROBATCH, "ties": "order"},
        "loss": {"dual_clip": 10.0, "penalties_on": "all"},
    },
    # torch.quantile's linear interpolation inside one micro-batch.
    "trl": {
        "selection": {**_MICROBATCH, "ties": "quantile"},
        "loss": {"penalties_on": "all"},
    },
    # The same, and the threshold is taken before truncated completions are left out.
    "ms-swift": {
        "selection": {**_MICROBATCH, "ties": "quantile", "truncated_in_pool": True},
        "loss": {"penalties_on": "all"},
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
        "loss": {"penalties_on": "all"},
    },
}
"""Name -> settings of [selection] and [loss]."""


def _objective(surrogate: str, low: float, high: float, advantage: str = "grpo") -> dict[str, Any]:
    loss = {"surrogate": surrogate, "clip_low": low, "clip_high": high}
    return {"loss": loss, "advantage": {"kind": advantage}}


LOSS_PRESETS: dict[str, dict[str, Any]] = {
    "dapo": _objective("ppo_clip", 0.2, 0.28),
    "grpo": _objective("ppo_clip", 0.2, 0.2),
    "dr_grpo": _objective("ppo_clip", 0.2, 0.2, "dr_grpo"),
    "gspo": _objective("gspo", 3e-4, 4e-4),
    "cispo": _objective("cispo", 1.0, 0.28),
}
"""Name -> settings of [loss] and [advantage]. ``clip_low = 1``: no lower bound (ratio >= 0)."""

DENOMINATORS: dict[str, dict[str, str]] = {
    "forkpoint": {
        "dapo": "selected",
        "cispo": "selected",
        "grpo": "sequence",
        "gspo": "sequence",
        "dr_grpo": "constant",
    },
    "paper": {"dapo": "selected", "cispo": "selected"},
    "paper-v1": {"dapo": "all", "cispo": "all"},
    "authors-code": {"dapo": "microbatch_selected"},
    "trl": {
        "dapo": "all_per_update",
        "cispo": "all_per_update",
        "grpo": "sequence",
        "dr_grpo": "constant",
    },
    "ms-swift": {
        "grpo": "sequence",
        "gspo": "sequence",
        "dr_grpo": "constant",
        "dapo": "sampled_of_step",
        "cispo": "sampled_of_step",
    },
    "lightrft": {"grpo": "sequence_selected"},
}
"""Selection preset -> loss preset -> ``loss.denominator``: what the published code divides by under
each of its loss types. The first one is its default, taken where the recipe names no loss preset; a
pair that is not here is one that the name does not stand for."""


def apply_presets(raw: dict[str, Any]) -> dict[str, Any]:
    """Fill a raw configuration from the presets it names; keys already there are kept.

    Raises:
        ValueError: the two presets do not go together, and the recipe writes no denominator.
    """
    out = {k: dict(v) if isinstance(v, dict) else v for k, v in raw.items()}
    selection_name = str(_section(raw, "selection").get("preset", "forkpoint"))
    denominators = DENOMINATORS.get(selection_name, {})
    loss_name = str(_section(raw, "loss").get("preset", next(iter(denominators), "dapo")))
    loss: dict[str, Any] = {"preset": loss_name}
    if loss_name in denominators:
        loss["denominator"] = denominators[loss_name]
    elif denominators and loss_name in LOSS_PRESETS and "denominator" not in _section(raw, "loss"):
        raise ValueError(
            f"selection.preset = {selection_name!r} stands for no published loss.preset = "
            f"{loss_name!r}: use {' or '.join(map(repr, denominators))}, or write loss.denominator"
        )
    filling = (
        {"loss": loss},
        LOSS_PRESETS.get(loss_name, {}),
        SELECTION_PRESETS.get(selection_name, {}),
    )
    for preset in filling:  # an unknown name fails in validation
        for section, settings in preset.items():
            if isinstance(out.setdefault(section, {}), dict):
                out[section] = {**settings, **out[section]}
    return out


def _section(raw: dict[str, Any], name: str) -> dict[str, Any]:
    section = raw.get(name, {})
    return section if isinstance(section, dict) else {}

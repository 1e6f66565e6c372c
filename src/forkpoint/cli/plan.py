"""``forkpoint plan``."""

import json
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from cyclopts import Parameter

from forkpoint.cli.options import Overrides, Recipe
from forkpoint.cli.terminal import SafeConsole


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Guesses:
    """What only a run shows."""

    prompt: int = 200
    """Tokens of a prompt."""
    length: int | None = None
    """Tokens of a completion on average; default: a third of rollout.max_new_tokens."""
    flat: float = 0.5
    """Share of sampled groups that dynamic sampling leaves out."""
    utilisation: float = 0.4
    """Of the GPU's peak rate, what training reaches."""
    sampling_utilisation: float = 0.1
    """Of the same, what sampling reaches."""


def plan(
    recipe: Recipe = None,
    *,
    gpus: int = 1,
    gpu: str = "h100",
    guesses: Guesses | None = None,
    set_: Overrides = None,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> int:
    """Say what a recipe will take: memory a GPU, operations, time, bytes sent. Nothing is loaded.

    Parameters
    ----------
    gpus
        How many train; vLLM's servers have their own.
    gpu
        h100, h200, a100, a100-40, l40s or rtx4090.
    as_json
        Print everything as JSON.
    """
    from forkpoint.config import load_config
    from forkpoint.errors import ConfigError
    from forkpoint.plan.gpus import gpu_of
    from forkpoint.plan.report import planned
    from forkpoint.plan.step import Assumed

    assumed = Assumed(**asdict(guesses or Guesses()))
    shares = (assumed.utilisation, assumed.sampling_utilisation)
    if gpus < 1 or not 0 <= assumed.flat < 1 or not all(0 < share <= 1 for share in shares):
        raise ConfigError(
            "--gpus is at least 1, --flat in [0, 1), --utilisation and --sampling-utilisation in "
            "(0, 1]"
        )
    if assumed.prompt < 1 or (assumed.length is not None and assumed.length < 1):
        raise ConfigError("--prompt and --length are at least 1 token")
    found = planned(load_config(recipe, set_ or []), assumed, gpus, gpu_of(gpu))
    if as_json:
        print(json.dumps(asdict(found), indent=2))
        return 0
    _show(found, gpu)
    return 0


def _show(found: Any, gpu: str) -> None:
    console = SafeConsole(highlight=False)
    step, memory, work, traffic = found.step, found.memory, found.operations, found.traffic
    console.say(
        f"{found.sizes.parameters / 1e9:.2f}e9 parameters, {found.sizes.trained / 1e9:.3g}e9 "
        f"trained; {found.gpus} x {gpu}"
    )
    console.say(
        f"assumed: prompts of {step.prompt} tokens, completions of {step.length}, {found.flat:.0%} "
        "of the groups flat"
    )
    console.say(f"a step: {step.sequences:,} sequences, {step.tokens:,} tokens trained on, "
                f"{step.sampled:,} sampled")  # fmt: skip
    for title, parts in (("training", memory.training), ("sampling", memory.sampling)):
        console.say(f"memory a GPU, {title}: {sum(parts.values()) / 1e9:.1f} GB")
        for name, size in parts.items():
            console.say(f"  {name:<16}{size / 1e9:8.2f} GB")
    verdict = "fits" if found.fits else "DOES NOT FIT"
    console.say(f"peak {memory.peak / 1e9:.1f} GB of {found.memory_gb:g} GB: {verdict}")
    console.say(f"host memory of each process while it loads: {memory.host / 1e9:.1f} GB")
    console.say("operations of a step, and time on all GPUs at the utilisation assumed")
    for name, number in asdict(work).items():
        console.say(f"  {name:<16}{number:10.3g}   {found.seconds[name]:10.1f} s")
    console.say(
        f"sparse / dense {work.sparse / work.dense:.2f}, "
        f"local / dense {work.local / work.dense:.2f}"
    )
    console.say(f"sent by each process in a step: {traffic.between / 1e9:.2f} GB")
    for name, size in asdict(traffic).items():
        console.say(f"  {name:<16}{size / 1e9:8.3f} GB")

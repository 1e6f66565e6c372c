"""What forkpoint does with every family of ``families.py``, against plain full passes.

    python -m tests.equivalence.model_table --out docs/models.md

writes the table of what was found; ``test_families.py`` holds the code to it.
"""

import argparse
import copy
import logging
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from forkpoint.batching import build_batch
from forkpoint.config.stages import OptimConfig
from forkpoint.errors import ModelError
from forkpoint.policy import PolicyModule
from forkpoint.policy.body import enable_checkpointing, name_of
from forkpoint.policy.checks import check_rows, plain_stats, settle_attention
from forkpoint.policy.live import LiveSet
from forkpoint.policy.load import LoadedModel
from forkpoint.policy.precision import compute_in, unsharded, whole
from forkpoint.sampling.base import SampleRequest, SamplingSettings
from forkpoint.sampling.rows import PLAIN, Decoding, settle_decoding
from forkpoint.sampling.transformers import TransformersEngine
from forkpoint.training.optimizer import Optimizer
from forkpoint.types import Problem, Prompt, TokenBatch
from tests.conftest import EOS, NumberTokenizer, make_group
from tests.equivalence.families import NOT_BUILT, build, families


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What one family gave; numbers are None where it was refused."""

    family: str
    name: str
    attention: str = ""
    rows: str = ""
    gradient_error: float | None = None
    """Of sparse against dense, relative, float32."""
    local_nats: float | None = None
    """Largest difference of local's log-probabilities from dense's."""
    alive_error: float | None = None
    """Of local's gradient with every position alive, against sparse's."""
    kept_error: float | None = None
    """Of local's gradient over kept keys, against that over those of a pass of its own."""
    decoding: str = ""
    engine_nats: float | None = None
    """Largest difference of sampled log-probabilities and entropies from plain passes, float64
    where attention allows it."""
    checkpointing_error: float | None = None
    """Of the checkpointed gradient against the plain one, relative."""
    bfloat16_error: float | None = None
    """Of the gradient with ``model.compute_dtype = bfloat16``, checkpointed, against float32's."""
    bfloat16_local_error: float | None = None
    bfloat16_weights_error: float | None = None
    """Of the gradient of a model that was loaded in bfloat16, against float32's."""
    bfloat16_nats: float | None = None
    """Mean difference of log-probabilities and entropies sampled in bfloat16 from plain passes."""
    bfloat16_faults: tuple[str, ...] = ()
    """Parameters that an update did not move, or that were left in another type."""
    refusals: tuple[str, ...] = ()


def measure(family: str) -> Found:
    """Load a family as forkpoint does, and compare everything with plain passes."""
    model = build(family)
    found = Found(family=family, name=name_of(model))
    try:
        check_rows(model)
        settle_attention(model)
    except ModelError as error:
        return replace(found, refusals=(str(error),))
    found = replace(found, attention=model.config._attn_implementation)
    # The last two change the model.
    parts = (rows_of, local_of, bfloat16_of, bfloat16_local_of, decoding_of, checkpointing_of)
    for part in parts:
        try:
            found = replace(found, **part(model))
        except ModelError as error:
            if str(error) not in found.refusals:
                found = replace(found, refusals=(*found.refusals, str(error)))
    return found


def batch_of(groups: int = 3) -> TokenBatch:
    """Sequences longer than every window of ``SMALL``: prompts of 20 tokens, completions of 30."""
    made = [
        make_group(n, rewards=[1.0, 0.0, 0.0], lengths=[30, 11 + n, 24], prompt_length=20 + 3 * n)
        for n in range(groups)
    ]
    return build_batch(made, advantage="grpo")


def gradient_of(model: Any, policy: PolicyModule) -> Tensor:
    """Of a weighted sum of log-probabilities and entropies of some tokens, float64, flat."""
    batch = batch_of()
    wanted_T = (batch.position_T * 7 + batch.sequence_T) % 5 == 0
    model.zero_grad()
    stats = policy(batch, wanted_T)
    kept = wanted_T[stats.rows_R]
    weights = torch.linspace(-1, 1, int(kept.sum()))
    (weights * stats.logprobs_R[kept] + 0.1 * stats.entropies_R[kept]).sum().backward()
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
    return torch.cat([whole(grad).flatten() for grad in grads]).double()


def relative(found: Tensor, exact: Tensor) -> float:
    return float((found - exact).norm() / exact.norm())


def rows_of(model: Any) -> dict[str, Any]:
    """The layout of sparse rows, and their gradient against dense's."""
    policy = PolicyModule(model, gradient="sparse", temperature=0.8)
    policy.row_tokens = 256
    exact = gradient_of(model, PolicyModule(model, gradient="dense", temperature=0.8))
    return {"rows": policy.rows, "gradient_error": relative(gradient_of(model, policy), exact)}


def local_of(model: Any) -> dict[str, Any]:
    """Local's values against dense's, and with every position alive its gradient against sparse's;
    nothing where rows are padded."""
    sparse = PolicyModule(model, gradient="sparse", temperature=0.8)
    if sparse.rows != "tree":
        return {}
    keeping = LiveSet(fraction=0.5, first_hop=False)
    dial = LiveSet(fraction=0.5), LiveSet(kind="all"), keeping, keeping
    local, alive, kept, own = (
        PolicyModule(model, gradient="local", temperature=0.8, live=live) for live in dial
    )
    for policy in (sparse, local, alive, kept, own):
        policy.row_tokens = 256
    kept.annotate(batch_of(), max_tokens=10_000, keep_keys=True)
    dense = PolicyModule(model, gradient="dense", temperature=0.8)
    batch = batch_of()
    wanted_T = batch.position_T % 4 == 1
    with torch.no_grad():
        exact = dense(batch, wanted_T).logprobs_R[wanted_T]
    return {
        "local_nats": float((local(batch, wanted_T).logprobs_R - exact).abs().max()),
        "alive_error": relative(gradient_of(model, alive), gradient_of(model, sparse)),
        "kept_error": relative(gradient_of(model, kept), gradient_of(model, own)),
    }


def checkpointing_of(model: Any) -> dict[str, Any]:
    """The checkpointed gradient against the plain one."""
    policy = PolicyModule(model, gradient="dense", temperature=0.8)
    plain = gradient_of(model, policy)
    enable_checkpointing(model)
    again = gradient_of(model, policy)
    return {"checkpointing_error": relative(again, plain)}


def bfloat16_of(model: Any) -> dict[str, Any]:
    """Passes in bfloat16 over float32 parameters: gradient, an update, sampling.

    Sparse gradients of checkpointed layers, where a family has those.
    """
    model = copy.deepcopy(model)
    dense = PolicyModule(model, gradient="dense", temperature=0.8)
    exact = gradient_of(model, dense)
    plain = in_16_bits(model)
    policy, decoding = dense, None
    with suppress(ModelError):
        policy = PolicyModule(model, gradient="sparse", temperature=0.8)
    with suppress(ModelError):
        decoding = settle_decoding(model)
    with suppress(ModelError):
        enable_checkpointing(model)
    compute_in(policy, torch.bfloat16)
    faults = not_float32(model)
    error = relative(gradient_of(model, policy), exact)
    faults += not_float32(model) + not_moved(model)
    nats = None
    if decoding is not None:
        with unsharded(policy):
            nats = float(engine_gaps(model, decoding, new_tokens=8).mean())
    return {
        "bfloat16_error": error,
        "bfloat16_weights_error": None if plain is None else relative(plain, exact),
        "bfloat16_nats": nats,
        "bfloat16_faults": tuple(faults + not_float32(model)),
    }


def bfloat16_local_of(model: Any) -> dict[str, Any]:
    """Local gradients in bfloat16 against those in float32; nothing where they are refused."""
    model = copy.deepcopy(model)
    try:
        # rounding may not choose other positions, or two gradients are compared
        forks = LiveSet(kind="forks")
        local = PolicyModule(model, gradient="local", temperature=0.8, live=forks)
    except ModelError:
        return {}
    local.row_tokens = 256
    exact = gradient_of(model, local)
    with suppress(ModelError):  # bfloat16_of has told
        compute_in(local, torch.bfloat16)
        return {"bfloat16_local_error": relative(gradient_of(model, local), exact)}
    return {}


def in_16_bits(model: Any) -> Tensor | None:
    """The gradient of a model whose weights are bfloat16, or None if transformers cannot."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        attention = model.config._attn_implementation
        loaded = type(model).from_pretrained(
            folder, dtype=torch.bfloat16, attn_implementation=attention
        )
    try:
        policy = PolicyModule(loaded.eval(), gradient="dense", temperature=0.8)
        return gradient_of(loaded, policy)
    except RuntimeError:
        return None


def not_float32(model: Any) -> list[str]:
    """Parameters that are not the float32 shards that an optimizer holds."""
    return [
        name
        for name, parameter in model.named_parameters()
        if not isinstance(parameter, DTensor) or parameter.dtype != torch.float32
    ]


def not_moved(model: Any) -> list[str]:
    """Parameters with a gradient that an update leaves where they were."""
    optimizer = Optimizer(model, OptimConfig(lr=1e-4))
    before = {
        name: whole(parameter.detach()).clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and whole(parameter.grad).any()
    }
    optimizer.step()
    after = dict(model.named_parameters())
    return [name for name, old in before.items() if torch.equal(whole(after[name].detach()), old)]


def decoding_of(model: Any) -> dict[str, Any]:
    """How the engine decodes, and how far its numbers are from plain passes."""
    decoding = settle_decoding(model)
    if model.config._attn_implementation != "eager" or not decoding.pads:
        model = model.double()  # eager attention turns float64's mask of padding into nan
        model.set_experts_implementation("eager")  # the faster ones know no float64
    gaps = engine_gaps(model, decoding, new_tokens=24)
    model.float()
    way = "padded" if decoding.pads else "by length"
    return {
        "decoding": way if decoding is PLAIN else f"{way}, own cache",
        "engine_nats": float(gaps.max()),
    }


def engine_gaps(model: Any, decoding: Decoding, new_tokens: int) -> Tensor:
    """Absolute differences of sampled log-probabilities and entropies from plain passes."""
    loaded = LoadedModel(model=model, tokenizer=NumberTokenizer(), eos_ids=(EOS, 9, 17, 33))
    engine = TransformersEngine(loaded, decoding=decoding, batch_sequences=512)
    settings = SamplingSettings(max_new_tokens=new_tokens, temperature=1.0, seed=3, step=0)
    requests = uneven_requests()
    gaps = []
    for request, made in zip(requests, engine.sample(requests, settings), strict=True):
        ids_BL = torch.tensor([[*request.prompt.token_ids, *made.token_ids]])
        start = len(request.prompt.token_ids) - 1
        for ours, plain_BL in zip(
            (made.logprobs, made.entropies), plain_stats(model, ids_BL), strict=True
        ):
            gaps.append((torch.tensor(ours) - plain_BL[0, start:]).abs())
    return torch.cat(gaps)


def uneven_requests() -> list[SampleRequest]:
    """Three samples of each of three prompts, of 4, 26 and 13 tokens."""
    prompts = [
        Prompt(problem=Problem(id=f"p{n}", prompt=""), token_ids=tuple(range(5, end)))
        for n, end in enumerate((9, 31, 18))
    ]
    return [
        SampleRequest(prompt=prompt, serial=serial, sample=sample)
        for serial, prompt in enumerate(prompts)
        for sample in range(3)
    ]


HEADER = """# Models

What forkpoint does with every family of causal language models in transformers {version}. Written
by `python -m tests.equivalence.model_table --out docs/models.md`: each family is built small with
random weights, loaded as a run loads it, and compared with plain full forward passes in float32.

Nothing of this is a list in the code. A model is tried when it is loaded: what differs falls back,
with a line that says so, or is refused by name.

* **Attention.** `sdpa` unless the class has none, caps its scores, or gives other numbers by it.
* **Rows** of the sparse gradient: a `tree` runs a prompt once for all of its completions; `padded`
  rows run it once each. Layers with windows, chunks or states take no mask of ours.
* **Gradient**: relative error of sparse against dense. **Local**: largest difference of its
  log-probabilities from dense's, in nats; it needs trees.
* **Sampling**: prompts of different lengths side by side, `padded`, or `by length`, where padding
  would change what a layer remembers. Most attention uses a cache that grows in place; other
  layers use transformers' `own cache`. **Engine**: largest difference of sampled log-probabilities
  and entropies from plain passes, in nats.
* **Checkpointing**: relative error of the gradient with `model.gradient_checkpointing`.
* **bfloat16**: relative error of the gradient with `model.compute_dtype = "bfloat16"`, parameters
  float32 and layers checkpointed. **16-bit weights**: the same of a model loaded in bfloat16. These
  random models round worse than trained ones. Where a class keeps some weights in float32 when it
  is loaded in 16 bits, a pass computes with all of them in bfloat16; buffers stay float32.

A `0` is equal to the last bit of float32. A refusal that names a number of nats is of these random
weights: `nemotron_h` and `zamba2` clamp a step size in full passes and not in single steps, which
trained weights may never reach.

"""

COLUMNS = (
    *("family", "attention", "rows", "gradient", "local", "sampling", "engine", "checkpointing"),
    *("bfloat16", "16-bit weights"),
)


def table(everything: Sequence[Found]) -> Iterator[str]:
    """The page: families that can be used, sentences of refusal, families that are not tried."""
    import transformers

    yield HEADER.format(version=transformers.__version__)
    yield f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}\n"
    usable = [found for found in everything if found.attention]
    for found in usable:
        cells = (
            *(found.family, found.attention, found.rows or "-"),
            *(_number(found.gradient_error), _number(found.local_nats)),
            *(found.decoding or "-", _number(found.engine_nats)),
            _number(found.checkpointing_error),
            *(_number(found.bfloat16_error), _number(found.bfloat16_weights_error)),
        )
        yield f"| {' | '.join(cells)} |\n"
    yield "\n## Refused\n\nWholly, or in a part (`-` above):\n\n"
    for found in everything:
        yield from (f"* `{found.family}`: {sentence}\n" for sentence in found.refusals)
    yield "\n## Not tried\n\n"
    yield from (f"* `{family}`: {reason}\n" for family, reason in sorted(NOT_BUILT.items()))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.0e}" if value else "0"


def main() -> None:
    """Measure every family and write the page."""
    import transformers

    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    logging.getLogger("forkpoint").setLevel(logging.ERROR)  # its lines are in the table
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    everything = []
    for family in families():
        everything.append(measure(family))
        print(everything[-1], file=sys.stderr, flush=True)
    options.out.write_text("".join(table(everything)), encoding="utf-8")


if __name__ == "__main__":
    main()

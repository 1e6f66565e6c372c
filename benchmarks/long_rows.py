"""Peak memory and seconds of one training update on one long sequence, on a CPU.

    python -m benchmarks.long_rows

For each length a fresh process builds a Qwen3 of 4 layers of width 128 with a vocabulary of 32,768
and random weights, makes an update on a short sequence (so that moments and libraries are there),
forgets the peak so far, and makes an update on the long one. What is told is the peak beyond what
was resident before. Selected are 20 % of the tokens, the last among them, so that nothing is cut.

glibc is told to give freed blocks of 256 kB and more back at once. As it comes, it keeps many of
them, and what is measured then is the allocator: up to twice as much.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.memory import reset_peak, resident_gb
from forkpoint.batching.batch import lay_out
from forkpoint.config import RunConfig, parse_config
from forkpoint.policy import PolicyModule
from forkpoint.policy.body import enable_checkpointing
from forkpoint.policy.live import LiveSet
from forkpoint.training.meter import Meter
from forkpoint.training.optimizer import Optimizer
from forkpoint.training.update import update
from forkpoint.types import TokenBatch

RESULTS = Path(__file__).with_name("results") / "long_rows.json"
VOCABULARY = 32_768
WAYS: tuple[dict[str, Any], ...] = (
    {"gradient": "sparse"},
    {"gradient": "sparse", "checkpointing": True},
    {"gradient": "local"},
    {"gradient": "local", "first_hop": False},
)
"""Local takes no checkpointing; without the first hop it has a pass of its own, too."""
PROMPT = 64
"""Tokens of the prompt, within the length."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Peak memory of an update, by sequence length.")
    parser.add_argument("--lengths", type=int, nargs="+", default=[2048, 8192, 20_480])
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--one", help="Measure this case, as JSON, here; used by the command.")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(**json.loads(options.one))))
        return
    rows = [in_a_process({"length": length, **way}) for way in WAYS for length in options.lengths]
    about = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    options.out.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")
    print(table(rows))


def in_a_process(case: dict[str, Any]) -> dict[str, Any]:
    """What ``measure`` finds in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.long_rows", "--one", json.dumps(case)]
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**18)}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=env)
    return json.loads(done.stdout.splitlines()[-1])


def measure(
    length: int, gradient: str, *, checkpointing: bool = False, first_hop: bool = True
) -> dict[str, Any]:
    """Peak and seconds of an update on one sequence of ``length`` tokens."""
    config = parse_config({"training": {"gradient": gradient, "micro_batch_tokens": 4096}})
    model = small_model(length)
    if checkpointing:
        enable_checkpointing(model)
    live = LiveSet(first_hop=first_hop)
    policy = PolicyModule(model, gradient=gradient, temperature=1.0, row_tokens=4096, live=live)
    optimizer = Optimizer(model, config.optim)
    one_update(policy, optimizer, sequence(2 * PROMPT), config)
    batch = sequence(length)
    before = resident_gb()
    reset_peak()
    started = time.perf_counter()
    one_update(policy, optimizer, batch, config)
    return {
        "gradient": gradient,
        "checkpointing": checkpointing,
        "first_hop": first_hop,
        "length": length,
        "row_tokens": policy.row_tokens,
        "parameters": sum(p.numel() for p in model.parameters()),
        "peak_gb": resident_gb("VmHWM") - before,
        "seconds": time.perf_counter() - started,
    }


def small_model(positions: int) -> Any:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=positions,
        tie_word_embeddings=True,
    )
    return Qwen3ForCausalLM(config).eval()


def sequence(length: int) -> TokenBatch:
    """One sequence of random tokens, a fifth of them selected."""
    generator = torch.Generator().manual_seed(length)
    ids = torch.randint(VOCABULARY, (length,), generator=generator)
    batch = lay_out([ids[:PROMPT]], [ids[PROMPT:]], [0])
    count = batch.num_tokens
    selected_T = torch.arange(count).flip(0) % 5 == 0
    zeros_T = torch.zeros(count)
    return batch.with_streams(
        advantages_T=zeros_T + 1,
        old_logprobs_T=zeros_T,
        coefficients_T=selected_T / selected_T.sum(),
    )


def one_update(
    policy: PolicyModule, optimizer: Optimizer, batch: TokenBatch, config: RunConfig
) -> None:
    meter = Meter(policy)
    fault = update(policy, optimizer, batch, config, meter, on_policy=False)
    if fault is not None:
        raise SystemExit(fault)


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: peak, bytes a token, seconds."""
    lines = [
        "| gradient | tokens | peak GB | kB a token beyond gradients | seconds |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        beyond = row["peak_gb"] * 1e6 - 4 * row["parameters"] / 1e3
        lines.append(
            f"| {row['gradient']}{', checkpointing' if row['checkpointing'] else ''}"
            f"{'' if row['first_hop'] else ', no first hop'} | {row['length']} | "
            f"{row['peak_gb']:.2f} | {beyond / row['length']:.1f} | {row['seconds']:.1f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()

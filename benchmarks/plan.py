"""What `forkpoint plan` predicts beside what is measured: memory of an update, bytes of a step.

    python -m benchmarks.plan

Memory: for three shapes of Qwen3 (wide with a large vocabulary, deep, one long row) a fresh process
makes two updates on a CPU in float32 (so that moments are there) and tells its peak beyond what was
resident before the model was made. As in benchmarks.long_rows glibc is told to give freed blocks
back at once.

Traffic: two gloo processes train the laboratory policy; what the loopback device carries in a step
is compared with twice what the plan says each process sends for the step's passes. Nothing else may
use that device.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.long_rows import one_update
from benchmarks.memory import reset_peak, resident_gb
from forkpoint.batching.batch import lay_out
from forkpoint.config import RunConfig, load_config, parse_config
from forkpoint.plan.memory import memory, pass_tokens
from forkpoint.plan.sizes import sizes_of
from forkpoint.plan.step import StepTokens
from forkpoint.plan.traffic import traffic
from forkpoint.policy import PolicyModule
from forkpoint.policy.body import enable_checkpointing
from forkpoint.training.optimizer import Optimizer
from forkpoint.types import TokenBatch

RESULTS = Path(__file__).with_name("results") / "plan.json"
PROMPT = 64
SHAPES: dict[str, dict[str, Any]] = {
    "wide, large vocabulary": {
        "model": {"hidden_size": 512, "num_hidden_layers": 2, "vocab_size": 65_536},
        "sequences": 8,
        "length": 512,
    },
    "deep": {
        "model": {"hidden_size": 256, "num_hidden_layers": 24, "vocab_size": 4096},
        "sequences": 8,
        "length": 512,
    },
    "deep, checkpointed": {
        "model": {"hidden_size": 256, "num_hidden_layers": 24, "vocab_size": 4096},
        "sequences": 8,
        "length": 512,
        "checkpointing": True,
    },
    "one long row": {
        "model": {"hidden_size": 256, "num_hidden_layers": 4, "vocab_size": 16_384},
        "sequences": 1,
        "length": 12_288,
    },
}
GRADIENTS = ("dense", "sparse")


def main() -> None:
    parser = argparse.ArgumentParser(description="The plan against measurement, on a CPU.")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--one", help="Measure this case, as JSON, here; used by the command.")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measured(**json.loads(options.one))))
        return
    rows = [in_a_process(name, gradient) for name in SHAPES for gradient in GRADIENTS]
    found = {"torch": torch.__version__, "memory": rows, "traffic": sent()}
    options.out.write_text(json.dumps(found, indent=1) + "\n")
    print(table(found))


def in_a_process(name: str, gradient: str) -> dict[str, Any]:
    """Predicted and measured bytes of a case."""
    with tempfile.TemporaryDirectory() as folder:
        case = {"name": name, "gradient": gradient, "folder": folder}
        command = [sys.executable, "-m", "benchmarks.plan", "--one", json.dumps(case)]
        env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**18)}
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=env)
        peak = json.loads(done.stdout.splitlines()[-1])
        config, step = case_of(name, gradient, Path(folder))
        sizes = sizes_of(config.model, pass_tokens(config, step))
    parts = memory(config, sizes, step, 1, device="cpu").training
    predicted = sum(parts.values()) / 1e9
    return {
        "shape": name,
        "gradient": gradient,
        "parameters": sizes.parameters,
        "predicted_gb": predicted,
        "measured_gb": peak,
        "ratio": predicted / peak,
        "parts": {part: size / 1e9 for part, size in parts.items()},
    }


def case_of(name: str, gradient: str, folder: Path) -> tuple[RunConfig, StepTokens]:
    """A shape's configuration, its model's config in ``folder``, and the tokens of its step."""
    from transformers import Qwen3Config

    shape = SHAPES[name]
    width, tokens = shape["model"]["hidden_size"], shape["length"]
    Qwen3Config(
        **shape["model"],
        intermediate_size=3 * width,
        num_attention_heads=width // 64,
        num_key_value_heads=max(1, width // 128),
        head_dim=64,
        max_position_embeddings=tokens,
        tie_word_embeddings=False,
        architectures=["Qwen3ForCausalLM"],
    ).save_pretrained(folder)
    config = parse_config(
        {
            "model": {
                "path": str(folder),
                "device": "cpu",
                "gradient_checkpointing": shape.get("checkpointing", False),
            },
            "rollout": {
                "prompts_per_step": 1,
                "group_size": max(2, shape["sequences"]),
                "max_new_tokens": tokens - PROMPT,
            },
            "training": {
                "gradient": gradient,
                "rows": "padded" if gradient == "sparse" else "auto",
                "micro_batch_tokens": shape["sequences"] * tokens,
            },
        }
    )
    step = StepTokens(
        sequences=shape["sequences"],
        prompt=PROMPT,
        length=tokens - PROMPT,
        sampled=shape["sequences"] * (tokens - PROMPT),
        longest=tokens,
    )
    return config, step


def measured(name: str, gradient: str, folder: str) -> float:
    """The peak of two updates, in 10^9 bytes beyond what was resident before the model."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config, step = case_of(name, gradient, Path(folder))
    before = resident_gb()
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)).eval()
    if config.model.gradient_checkpointing:
        enable_checkpointing(model)
    policy = PolicyModule(
        model,
        gradient=gradient,
        temperature=1.0,
        rows=config.training.rows,
        row_tokens=config.training.micro_batch_tokens,
    )
    optimizer = Optimizer(model, config.optim)
    batch = random_batch(step, model.config.vocab_size)
    one_update(policy, optimizer, batch, config)
    reset_peak()
    one_update(policy, optimizer, batch, config)
    return resident_gb("VmHWM") - before


def random_batch(step: StepTokens, vocabulary: int) -> TokenBatch:
    """Random tokens, a fifth of them selected, the last of each sequence among them."""
    generator = torch.Generator().manual_seed(0)
    count = step.prompt + step.length
    ids = torch.randint(vocabulary, (step.sequences, count), generator=generator)
    batch = lay_out(
        list(ids[:, : step.prompt]), list(ids[:, step.prompt :]), list(range(step.sequences))
    )
    selected_T = (step.length - 1 - batch.position_T) % 5 == 0
    zeros_T = torch.zeros(batch.num_tokens)
    return batch.with_streams(
        advantages_T=zeros_T + 1,
        old_logprobs_T=zeros_T,
        coefficients_T=selected_T / selected_T.sum(),
    )


# ---- traffic ------------------------------------------------------------------------------------

STEPS = 6
SETTINGS = {
    "training.threads": 1,
    "training.steps": STEPS,
    "rollout.dynamic_sampling": False,
    "evaluation.every": 0,
    "checkpoint.every": 0,
    "scoring.workers": 1,
}


def sent() -> dict[str, float]:
    """Bytes of a step of two processes: what loopback carried, and what the plan says."""
    short, long = carried(2), carried(STEPS)
    overrides = [f"{name}={json.dumps(value)}" for name, value in SETTINGS.items()]
    config = load_config(Path("lab_game"), overrides)
    line = long["line"]
    sequences = config.rollout.prompts_per_step * config.rollout.group_size
    step = StepTokens(
        sequences=sequences,
        prompt=20,
        length=round(line["completion/length_mean"]),
        sampled=int(line["completion/tokens"]),
        longest=config.rollout.max_new_tokens + 20,
    )
    passes = [math.ceil(line[f"work/{name}"] / 2) for name in ("passes", "nograd_passes")]
    sizes = sizes_of(config.model, 512)
    found = traffic(config, sizes, step, 2, (passes[0], passes[1]), backend="gloo")
    measured = (long["bytes"] - short["bytes"]) / (STEPS - 2)
    return {
        "measured_bytes": measured,
        "predicted_bytes": 2 * found.between,
        "ratio": 2 * found.between / measured,
        **{f"predicted_{name}": 2 * size for name, size in asdict(found).items()},
    }


def carried(steps: int) -> dict[str, Any]:
    """Bytes on loopback while two processes make so many steps, and the last one's metrics."""
    settings = {**SETTINGS, "training.steps": steps}
    options = [x for n, v in settings.items() for x in ("--set", f"{n}={json.dumps(v)}")]
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node=2", "-m", "forkpoint", "train", "lab_game", *options),
            *("--run-dir", f"{folder}/run"),
        ]
        before = loopback_bytes()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        after = loopback_bytes()
        lines = Path(folder, "run", "metrics.jsonl").read_text().splitlines()
    return {"bytes": after - before, "line": json.loads(lines[-1])}


def loopback_bytes() -> int:
    """Sent so far."""
    for line in Path("/proc/net/dev").read_text().splitlines():
        name, _, numbers = line.partition(":")
        if name.strip() == "lo":
            return int(numbers.split()[8])
    raise SystemExit("there is no loopback device to count bytes on")


def table(found: dict[str, Any]) -> str:
    lines = [
        "| shape | gradient | parameters | predicted GB | measured GB | ratio |",
        "|---|---|---|---|---|---|",
    ]
    for row in found["memory"]:
        lines.append(
            f"| {row['shape']} | {row['gradient']} | {row['parameters'] / 1e6:.0f}e6 | "
            f"{row['predicted_gb']:.2f} | {row['measured_gb']:.2f} | {row['ratio']:.2f} |"
        )
    sent = found["traffic"]
    lines += [
        "",
        f"two gloo processes, bytes of a step: predicted {sent['predicted_bytes'] / 1e6:.1f}e6, "
        f"measured {sent['measured_bytes'] / 1e6:.1f}e6, ratio {sent['ratio']:.2f}",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()

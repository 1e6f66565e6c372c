"""The benchmarks that have a name: where their problems are, who judges, how they are asked.

No problem of theirs is here. Settings are the paper's (arXiv 2506.01939 v2, section 5): its prompt,
16 answers at temperature 1. It does not say how long answers may be when it evaluates: 20,480
tokens are what it trains with. GSM8K is not among its six; short answers, one each.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

BOXED = "Please reason step by step, and put your final answer within \\boxed{}."


Verifier: TypeAlias = Literal["integer", "math", "code"]


class Prompting(NamedTuple):
    """How a question becomes a prompt."""

    template: str
    """With a place for the ``{question}``, and maybe one for an ``{instruction}``."""
    chat: bool
    """Through the model's chat template, as the user's message."""


PROMPTS = {
    "paper": Prompting("User:\n{question}\n" + BOXED + "\n\nAssistant:\n", chat=False),
    "r1": Prompting("{question}\n" + BOXED, chat=True),
    "chat": Prompting("{question}\n\n{instruction}", chat=True),
}

INSTRUCTIONS = {
    "integer": "Put your final answer, which is an integer, within \\boxed{}.",
    "math": "Put your final answer within \\boxed{}.",
}
"""Of the prompt ``chat``, by who judges."""


@dataclass(frozen=True, slots=True)
class HubSet:
    """A data set of the hub."""

    id: str
    split: str = "test"
    subset: str | None = None

    def __str__(self) -> str:
        subset = f", subset {self.subset}" if self.subset else ""
        return f"{self.id}{subset}, split {self.split}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """A row of the table."""

    size: int
    """How many problems it has; 0: that varies."""
    hub: tuple[HubSet, ...]
    """Tried in this order."""
    verifier: Verifier
    files: tuple[str, ...] = ()
    """Other names of its files, as letters and digits in lower case."""
    prompt: str = "paper"
    temperature: float = 1.0
    max_new_tokens: int = 20_480
    samples: int = 16


BENCHMARKS = {
    "aime24": Benchmark(
        size=30,
        hub=(HubSet("HuggingFaceH4/aime_2024", "train"), HubSet("Maxwell-Jia/AIME_2024", "train")),
        verifier="integer",
        files=("aime2024",),
    ),
    "aime25": Benchmark(
        size=30,
        hub=(HubSet("math-ai/aime25"), HubSet("yentinglin/aime_2025", "train")),
        verifier="integer",
        files=("aime2025",),
    ),
    "amc23": Benchmark(
        size=40, hub=(HubSet("math-ai/amc23"),), verifier="integer", files=("amc2023",)
    ),
    "math500": Benchmark(size=500, hub=(HubSet("HuggingFaceH4/MATH-500"),), verifier="math"),
    "minerva": Benchmark(
        size=272,
        hub=(HubSet("math-ai/minervamath"),),
        verifier="math",
        files=("minervamath",),
    ),
    "olympiadbench": Benchmark(
        size=675,
        hub=(HubSet("Hothan/OlympiadBench", "train", "OE_TO_maths_en_COMP"),),
        verifier="math",
        files=("olympiad",),
    ),
    "gsm8k": Benchmark(
        size=1319,
        hub=(HubSet("openai/gsm8k", subset="main"),),
        verifier="integer",
        max_new_tokens=2048,
        samples=1,
    ),
    # Version 5's window. In livecodebench/code_generation_lite the rows come with a script, which
    # would have to be run; this is a copy in parquet.
    "livecodebench": Benchmark(
        size=0,
        hub=(HubSet("lighteval/code_generation_lite", subset="release_v5"),),
        verifier="code",
        prompt="chat",
    ),
}

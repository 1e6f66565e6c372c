"""One small frozen model per stage of the pipeline. Defaults are the vetted settings."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictFloat, StrictInt

Fraction = Annotated[float, Field(gt=0.0, le=1.0)]
Parameters = dict[str, StrictInt | StrictFloat]


class Stage(BaseModel):
    """Base: immutable, and a key it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class LoraConfig(Stage):
    """Low-rank adapters that are trained in the place of the model's weights."""

    rank: int = Field(default=16, ge=1)
    alpha: float = Field(default=32.0, gt=0)
    """The adapters' product is multiplied by alpha / rank."""
    targets: str | tuple[str, ...] = "all-linear"
    """Names of linear layers, such as ``["q_proj", "v_proj"]``; ``all-linear``: every one but the
    head."""
    seed: int = Field(default=0, ge=0)
    """Of the adapters' first values."""


class ModelConfig(Stage):
    """Which model, and how it is held."""

    path: str = "lab:game"
    """``lab:game`` or ``lab:walk`` (the shipped laboratory policies), a folder, or a hub id.
    Safetensors only."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """What a forward pass computes in. Trained parameters, their moments and sums of gradients are
    float32 always, and so are log-probabilities and entropies."""
    device: str = "auto"
    """``auto`` (CUDA if there is one), ``cpu``, ``cuda``, ``cuda:1``."""
    attention: Literal["sdpa", "eager", "flex_attention", "flash_attention_2"] = "sdpa"
    """Tree rows are cheapest by ``flex_attention`` on a GPU; ``flash_attention_2`` takes none."""
    lora: LoraConfig | None = None
    """Train adapters (``--set model.lora.rank=16``). The frozen weights are then held in
    ``compute_dtype`` on one process, the adapters in float32."""
    gradient_checkpointing: bool = False
    """Run each layer again in backward instead of keeping its activations."""


class LabTaskConfig(Stage):
    """A world of the laboratory, whose true forks are known; see ``forkpoint.lab``."""

    type: Literal["lab"] = "lab"
    world: Literal["game", "walk"] = "game"
    """Default: that of ``model.path``, if it is a policy of the laboratory."""
    parameters: dict[str, int | float] = {}
    """Its rules where they are not those of the shipped policy, such as ``{verbosity = 0}``; for
    the policy to them: ``python -m forkpoint.lab.base_policy``."""
    seed: int = Field(default=0, ge=0)


class GymTaskConfig(Stage):
    """A generated task of reasoning-gym."""

    type: Literal["gym"]
    name: str
    """The data set's name in reasoning-gym, such as ``chain_sum``."""
    parameters: dict[str, Any] = {}
    """Its settings, such as ``{min_terms = 2, max_terms = 2}``."""
    seed: int = Field(default=0, ge=0)
    instruction: str = ""
    """Put after the question; where the answer must stand."""
    answer_format: Literal["tag", "boxed", "number", "text"] = "tag"
    """Where the answer is looked for: ``<answer>..</answer>``, ``\\boxed{..}``, the last number,
    or the whole completion."""
    chat: bool = True
    """Ask through the model's chat template."""


class DataTaskConfig(Stage):
    """Rows of a JSONL or parquet file, or of a hub data set."""

    type: Literal["data"]
    path: str
    """``*.jsonl``, ``*.parquet``, or a hub id (needs the ``hub`` extra)."""
    subset: str | None = None
    """The configuration of a hub data set, such as ``main``."""
    split: str = "train"
    """Of a hub data set."""
    seed: int = Field(default=0, ge=0)
    """Of the order of rows, new every epoch."""
    prompt_column: str = "prompt"
    id_column: str | None = None
    """Without it the row's number is its id."""
    instruction: str = ""
    template: str = "{prompt}{instruction}"
    """How the text is put together; for the paper's: see the recipe qwen3_8b_paper."""
    chat: bool = True
    """Ask through the model's chat template; false: plain text."""
    eval_path: str | None = None
    """Held-out rows of the same shape, other ones than those of ``path``; without it nothing can be
    evaluated on this task."""
    eval_subset: str | None = None
    """Of a hub data set; default ``subset`` if ``eval_path`` is ``path``, else none."""
    eval_split: str | None = None
    """Of a hub data set; default ``test``."""


TaskConfig = Annotated[LabTaskConfig | GymTaskConfig | DataTaskConfig, Field(discriminator="type")]


class VllmConfig(Stage):
    """The vLLM servers of ``rollout.engine = "vllm"``; see docs/vllm.md."""

    servers: tuple[str, ...] = ()
    """URLs of servers that run already, such as ``http://node7:8000``; without any, the run starts
    its own on this machine."""
    launch: int = Field(default=1, ge=1)
    """How many servers the run starts."""
    devices: tuple[str, ...] = ()
    """``CUDA_VISIBLE_DEVICES`` of each of them, such as ``["6", "7"]``."""
    python: str | None = None
    """The Python that has vLLM, such as ``.venv-vllm/bin/python``; default: this one."""
    arguments: tuple[str, ...] = ()
    """More arguments for each server that is started, such as ``["--max-model-len", "4096"]``."""
    weights_dir: str | None = None
    """A folder that run and servers see, for new weights; needed with ``servers``. Default: in
    shared memory, where there is room for two copies, else among temporary files."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """What the servers compute in; ``auto``: ``model.compute_dtype``."""
    concurrency: int = Field(default=128, ge=1)
    """Completions that are asked of one server at a time."""
    stall_s: float = Field(default=120.0, gt=0)
    """A server at work that makes no token for so long is given up."""
    request_minutes: float = Field(default=60.0, gt=0)
    """So is one that has not answered a request after so long, whatever else it does."""
    start_minutes: float = Field(default=15.0, gt=0)
    """The most that a server may take to start."""


class RolloutConfig(Stage):
    """How completions are sampled."""

    engine: str = "transformers"
    """``transformers``, ``vllm``, or ``package.module:factory`` (see ``sampling.base.Engine``)."""
    vllm: VllmConfig = VllmConfig()
    lag: Literal[0, 1] = 0
    """1: sample the next step while this one is trained on, with weights one step older. Needs an
    engine in another process."""
    prompts_per_step: int = Field(default=24, ge=1)
    group_size: int = Field(default=12, ge=2)
    max_new_tokens: int = Field(default=160, ge=1)
    temperature: float = Field(default=1.0, gt=0)
    batch_sequences: int = Field(default=512, ge=1)
    """The most completions that the engine samples side by side."""
    cache_gb: float | None = Field(default=None, gt=0)
    """10^9 bytes that keys and values of these may take in the engine ``transformers``: fewer are
    sampled side by side, as if each were as long as the longest prompt and ``max_new_tokens``.
    Default: no bound of bytes."""
    dynamic_sampling: bool = True
    """Keep only groups whose answers the verifier judged differently: 0 < right < G."""
    max_rounds: int = Field(default=3, ge=1)
    """Rounds of sampling to fill a step; what is short after that is trained as it is."""
    truncated: Literal["keep", "mask"] = "keep"
    """``mask``: completions cut by the token budget are not trained on (not in the pool)."""
    keep: (
        Literal["auto", "all", "none"]
        | Annotated[int, Field(ge=1, strict=True)]
        | Annotated[float, Field(gt=0.0, le=1.0, strict=True)]
    ) = "auto"
    """Which of a step's groups are stored in completions/train: ``all``, ``none``, a number of
    prompts (``8``), a share of them (``0.25``), or ``auto``: all, up to 2^20 tokens a step. The
    groups are drawn by the prompts' numbers, so that two runs keep the same ones."""


class AdvantageConfig(Stage):
    """What a sample was worth within its group; see ``forkpoint.advantages``."""

    kind: Literal["grpo", "dr_grpo", "rloo"] = "grpo"


class SelectionConfig(Stage):
    """Which tokens get a policy gradient; see docs/selection.md."""

    preset: Literal[
        "forkpoint", "paper", "paper-v1", "authors-code", "trl", "ms-swift", "lightrft"
    ] = "forkpoint"
    rule: str = "top"
    """``top``, ``bottom``, ``random``, ``all``, another one of docs/selection.md, a union of some
    (``top+prefix``), or ``package.module:function``."""
    parameters: Parameters = {}
    """Of the rule, where it has any, such as ``{low = 0.1, high = 3}``."""
    keep_fraction: Fraction = 0.2
    keep_fraction_start: Fraction | None = None
    """The fraction in step 1, from where it goes to ``keep_fraction`` in equal parts."""
    keep_fraction_steps: int | None = Field(default=None, ge=2)
    """The step in which it gets there."""
    threshold_nats: float | None = Field(default=None, ge=0)
    """For the rule ``threshold``: keep H > this."""
    scope: Literal["batch", "minibatch", "microbatch", "sequence"] = "batch"
    entropy: Literal["auto", "rollout", "old", "current"] = "auto"
    """``auto``: the sampler's if it captures them, else one no-grad pass (``old``)."""
    ties: Literal["order", "keep", "quantile"] = "order"
    rounding: Literal["ceil", "floor"] = "ceil"
    zero_advantage_in_pool: bool = False
    """True for parity with peers: dead tokens compete and use up the budget."""
    truncated_in_pool: bool = False
    """The same for tokens that ``rollout.truncated = "mask"`` leaves out of training (ms-swift)."""


class MarkedConfig(Stage):
    """Tokens that are trained on with another loss than the rest: see docs/selection.md."""

    rule: str = "top"
    """Any rule of selection; it names the marked tokens, whatever weight it gives them."""
    parameters: Parameters = {}
    keep_fraction: Fraction = 0.2
    scope: Literal["step", "sequence"] = "sequence"
    """``step``: all tokens that compete for selection at a time."""
    clip_low: float | None = Field(default=None, ge=0, le=1)
    """In the place of that of ``loss``, as the two below; None: the same."""
    clip_high: float | None = Field(default=None, ge=0)
    kl_coefficient: float | None = Field(default=None, ge=0)
    drift_coefficient: float = Field(default=0.0, ge=0)
    """Times |ln pi - ln pi_old|, added to their loss; 0 in a step's first update, before which
    nothing has drifted."""


class LossConfig(Stage):
    """The objective; see ``forkpoint.losses`` and docs/selection.md."""

    preset: Literal["dapo", "grpo", "dr_grpo", "gspo", "cispo"] = "dapo"
    surrogate: Literal["ppo_clip", "reinforce", "gspo", "cispo"] = "ppo_clip"
    clip_low: float = Field(default=0.2, ge=0, le=1)
    clip_high: float = Field(default=0.28, ge=0)
    dual_clip: float | None = Field(default=None, gt=1)
    """With ``ppo_clip``: bounds the loss of tokens with negative advantage by this times
    |advantage|."""
    denominator: Literal[
        "selected",
        "all",
        "all_per_update",
        "sampled_of_step",
        "sequence",
        "sequence_selected",
        "microbatch_selected",
        "constant",
    ] = "selected"
    constant_tokens: int | None = Field(default=None, ge=1)
    """Per sequence, for ``constant``; default ``rollout.max_new_tokens`` (Dr. GRPO)."""
    kl: Literal["k2", "k3"] = "k3"
    kl_coefficient: float = Field(default=0.0, ge=0)
    """> 0 loads a frozen copy of the first weights as the reference."""
    entropy_bonus: float = Field(default=0.0, ge=0)
    importance_cap: Annotated[float, Field(gt=0)] | Literal["none"] = 2.0
    """Where the engine does not hold the trainer's own weights: each token's coefficient is
    multiplied by min(pi_old / pi_sampler, this); ``none``: by 1."""
    penalties_on: Literal["selected", "all"] = "selected"
    """Which tokens carry KL penalty and entropy bonus, divided as the surrogate is; ``all`` makes
    sparse run every head row."""
    marked: MarkedConfig | None = None
    """Tokens with a loss of their own, such as the forks of Archer or the tokens of KL-Cov."""


class OptimConfig(Stage):
    """AdamW, warm-up, clipping."""

    lr: float = Field(default=1e-4, gt=0)
    warmup_steps: int = Field(default=0, ge=0)
    """Optimizer updates over which the rate rises linearly to ``lr``; constant afterwards."""
    weight_decay: float = Field(default=0.0, ge=0)
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.999, ge=0, lt=1)
    eps: float = Field(default=1e-8, gt=0)
    clip_norm: float = Field(default=1.0, gt=0)


class TrainingConfig(Stage):
    """How many steps, and how a step is cut into updates and passes."""

    steps: int = Field(default=30, ge=0)
    seed: int = Field(default=0, ge=0)
    gradient: Literal["dense", "sparse", "local"] = "sparse"
    """``sparse`` is exact and skips what is zero; ``local`` is cheaper and biased; ``dense`` is the
    oracle. See docs/performance.md."""
    live: Literal["looked_at", "forks", "random", "all"] = "looked_at"
    """Which positions ``local`` runs with gradient beside those that predict selected tokens:
    those that these look at most, none, random ones (a control), or all (exact)."""
    live_fraction: Fraction = 0.35
    """Of the positions of a row, how many are live; no fewer than the selected ones."""
    first_hop: bool = True
    """Of ``local``: carry the gradients of constant keys and values into the weights that made
    them. Needs a pass of its own in every update; false: keys are kept while sampling."""
    keys_gb: float = Field(default=4.0, gt=0)
    """Without the first hop, keys and values that are kept, in 10^9 bytes; sequences for which
    there is no room run once more in the update."""
    stale_keys: bool = False
    """Without the first hop: read the kept keys in all of a step's updates, not only in the first.
    Cheaper, and log-probabilities of the later ones are no longer exact: docs/performance.md."""
    check_gradient_every: int = Field(default=0, ge=0)
    """Steps; 0: never. Then the first update's ``local`` gradient is compared with the exact one,
    at the price of computing that, too: ``grad/cosine_to_exact``, ``grad/norm_to_exact``."""
    rows: Literal["auto", "tree", "padded"] = "auto"
    """How ``sparse`` lays sequences out: ``tree`` runs a prompt once for several completions;
    ``auto`` does where the model takes the mask."""
    mini_batches: int = Field(default=4, ge=1)
    """Optimizer updates per step; the paper: 16."""
    micro_batch_tokens: int = Field(default=4096, ge=1)
    """Most tokens in one forward pass, padding included; a single sequence may be longer. Changes
    memory and speed, and the result by rounding alone; but ``local`` chooses positions by row."""
    micro_batch_sequences: int | None = Field(default=None, ge=1)
    """Fixed number of sequences instead; part of the method only under scope ``microbatch``."""
    max_bad_steps: int = Field(default=5, ge=1)
    """Stop after so many steps in a row that could not be trained on."""
    rank_timeout_minutes: float = Field(default=60.0, gt=0)
    """Of several processes, the most that one waits for another, as while that one is sampling."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads of torch; part of what makes two runs byte-identical. Default: torch's."""


class CheckpointConfig(Stage):
    """When the run is saved."""

    every: int = Field(default=10, ge=0)
    """Steps; 0: only at the end and on SIGTERM."""
    keep_last: int = Field(default=2, ge=1)

"""Every family of causal language models in transformers, built small."""

from typing import Any

import torch

from tests.conftest import EOS, VOCABULARY

SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "dim_model", "lru_width"), 32),
    "attention_hidden_size": 32,
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "dff", "dim_ff"), 48),
    "decoder_ffn_dim": 48,
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), 2),
    "decoder_layers": 2,
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("decoder_attention_heads", "attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads"), 2),
    "head_dim": 8,
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"), 256),
    # windows that rows of this test are longer than
    **dict.fromkeys(("sliding_window", "window_size", "attention_window_size"), 8),
    **dict.fromkeys(("attention_chunk_size", "sliding_window_size", "local_attention"), 8),
    # mixtures of experts
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    "moe_num_experts": 4,
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k"), 2),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 24),
    **dict.fromkeys(("shared_intermediate_size", "expert_ffn_hidden_size"), 24),
    **dict.fromkeys(("n_shared_experts", "moe_num_shared_experts", "n_group", "topk_group"), 1),
    "first_k_dense_replace": 1,
    # latent and sparse attention
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank"), 16),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim", "index_head_dim"), 8),
    "index_n_heads": 16,  # scores of few heads tie at 0, and a tie is broken by the row's length
    "index_topk": 4,
    # states
    **dict.fromkeys(("mamba_d_state", "state_size", "ssm_state_size"), 8),
    **dict.fromkeys(("mamba_d_conv", "linear_conv_kernel_dim"), 3),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads"), 8),
    **dict.fromkeys(("mamba_d_head", "mamba_head_dim", "mamba_headdim"), 8),
    **dict.fromkeys(("mamba_n_groups", "n_groups", "mamba_ngroups"), 1),
    **dict.fromkeys(("mamba_chunk_size", "chunk_size"), 16),
    **dict.fromkeys(("mamba_expand", "n_mamba_heads", "linear_num_key_heads"), 2),
    **dict.fromkeys(("time_step_rank", "mamba_dt_rank", "linear_num_value_heads"), 4),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim"), 8),
    "mamba_d_ssm": 64,
    # small extras
    **dict.fromkeys(("hidden_size_per_layer_input", "laurel_rank"), 8),
    "vocab_size_per_layer_input": VOCABULARY,
    # large enough that distributions are not flat
    **dict.fromkeys(("initializer_range", "init_std"), 0.3),
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": EOS,
}
"""Fields of a config -> the small value they get, wherever a family has them."""

LATENT = {"num_key_value_heads": 4}
HYBRID = {"layer_types": ["linear_attention", "full_attention"]}
SLIDING = {"layer_types": ["sliding_attention", "full_attention"]}
ROPE = {"rope_type": "default", "rope_theta": 10_000.0}

PARTICULAR: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("axk1", "axk2", "deepseek_v2", "deepseek_v3", "deepseek_v32"), LATENT),
    **dict.fromkeys(("glm4_moe_lite", "glm_moe_dsa", "longcat_flash", "minicpm3"), LATENT),
    "youtu": LATENT,
    **dict.fromkeys(("qwen3_5_text", "qwen3_5_moe_text", "qwen3_next", "olmo_hybrid"), HYBRID),
    "minimax": HYBRID,
    **dict.fromkeys(("gemma2", "gemma3_text", "gemma4_text", "gemma4_unified_text"), SLIDING),
    "bamba": {"attn_layer_indices": [1]},
    "codegen": {"rotary_dim": 4},
    "cohere_compass_text": SLIDING
    | {"rope_parameters": {k: ROPE | {"mrope_section": [1, 1, 2]} for k in SLIDING["layer_types"]}},
    "dbrx": {
        "rope_parameters": ROPE,
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 10_000.0},
        "ffn_config": {
            "hidden_size": 32,
            "ffn_hidden_size": 48,
            "moe_num_experts": 4,
            "moe_top_k": 2,
        },
    },
    "gemma3n_text": {
        "num_hidden_layers": 4,
        "layer_types": SLIDING["layer_types"] * 2,
        "num_kv_shared_layers": 2,
        "activation_sparsity_pattern": [0.0] * 4,
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "gptj": {"rotary_dim": 4},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "jamba": {
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
    },
    "kimi_linear": HYBRID
    | {
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "num_key_value_heads": 4,
        "linear_head_dim": 8,
        "linear_num_heads": 2,
        "max_position_embeddings": 256,
    },
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "llama4_text": {"layer_types": ["chunked_attention", "full_attention"]},
    "mamba2": {"num_heads": 8},
    "qwen4_exp_text": {
        "layer_types": ["linear_attention", "indexed_attention"],
        "indexer_n_heads": 16,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 8,
        "indexer_compress_ratio": 2,
        "hc_lowrank": 8,
        "hc_count": 2,
    },
    "recurrent_gemma": {"num_hidden_layers": 3},
    "reformer": {
        "is_decoder": True,
        "axial_pos_shape": [16, 16],
        "axial_pos_embds_dim": [16, 16],
        "attn_layers": ["local", "lsh"],
    },
    "zamba": {
        "num_hidden_layers": 6,
        "num_key_value_heads": 4,
        "attention_head_dim": 16,
        "attention_hidden_size": 64,
        "layers_block_type": ["linear_attention", "linear_attention", "hybrid"] * 2,
    },
    "zamba2": {
        "num_hidden_layers": 6,
        "num_key_value_heads": 4,
        "head_dim": 16,
        "attention_hidden_size": 64,
        "n_mamba_heads": 8,
        "adapter_rank": 4,
        "layers_block_type": ["linear_attention", "hybrid"] * 3,
    },
    "zaya": {"num_experts_per_tok": 1},
}
"""What a family needs beside ``SMALL``."""

VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "depth": 1,
    "num_attention_heads": 4,
    "num_heads": 4,
    "image_size": 28,
    "patch_size": 14,
    **dict.fromkeys(("out_hidden_size", "vision_output_dim"), 32),
    **dict.fromkeys(("projector_input_dim", "projector_output_dim"), 32),
}

WITH_IMAGES: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma3": ("gemma3_text", VISION | {"model_type": "siglip_vision_model"}),
    "gemma4": ("gemma4_text", {}),
    "llama4": ("llama4_text", VISION),
    "qwen3_5": ("qwen3_5_text", VISION),
    "qwen3_5_moe": ("qwen3_5_moe_text", VISION),
}
"""Families whose checkpoints hold a language model of another family, and their eyes."""

NOT_BUILT = {
    **dict.fromkeys(
        (
            *("emu3", "gemma3n", "gemma4_unified", "git", "got_ocr2", "mllama"),
            *("phi4_multimodal", "qwen4_exp"),
        ),
        "reads images or sound, too, and is large in every configuration",
    ),
    **dict.fromkeys(("musicgen", "musicgen_melody"), "makes music, given a text encoder"),
    **dict.fromkeys(("gemma4_assistant", "gemma4_unified_assistant"), "drafts for another model"),
    "blt": "reads bytes in patches that a second model cuts",
    "reformer": "its backward pass works in training mode only",
    "roc_bert": "an encoder, larger than these tests",
    "xmod": "needs a language beside the tokens",
}
"""Families of causal language models that are not tried, and why."""


def build(family: str, **changes: Any) -> Any:
    """A small model of a family with random weights, the same in every process."""
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    if family in WITH_IMAGES:
        inner, eyes = WITH_IMAGES[family]
        parts = {"text_config": small(inner) | {"model_type": inner}, "vision_config": eyes or None}
        config = CONFIG_MAPPING[family](**parts | changes)
    else:
        config = CONFIG_MAPPING[family](**small(family) | changes)
    torch.manual_seed(0)
    try:
        model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    except ValueError:
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    # transformers makes the padding's embedding zero: sparse attention would pick among equal keys
    torch.nn.init.normal_(model.get_input_embeddings().weight[0].data, std=0.3)
    return model.eval()


def small(family: str) -> dict[str, Any]:
    """The fields of a family's small config."""
    from transformers import CONFIG_MAPPING

    kind = CONFIG_MAPPING[family]
    default = kind().to_dict()
    fields = {
        name: value
        for name, value in SMALL.items()
        if name in {*default, *kind.attribute_map}
        if "window" not in name or default.get(name) is not None  # no window where there is none
    }
    for other, own in kind.attribute_map.items():  # two names of one field
        if other in fields and own in fields:
            del fields[other]
    return fields | PARTICULAR.get(family, {})


def families() -> list[str]:
    """Every family that is tried."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return sorted(set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) - set(NOT_BUILT))

"""A tiny model of every family: what differs in how its blocks are built and called."""

from typing import Any

import torch
from transformers import AutoConfig

from lillama.data.tokens import TokenBlocks
from lillama.model.inputs import Batch
from lillama.model.task import AUTO_CLASSES, task_of_architecture

BASE = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 64, "pad_token_id": 0}
GATED = {**BASE, "intermediate_size": 48}
GROUPED = {**GATED, "num_key_value_heads": 2}
EXPERTS = {**GROUPED, "num_experts_per_tok": 2, "head_dim": 8}
SEQ2SEQ = {"vocab_size": 64, "d_model": 32, "pad_token_id": 0, "decoder_start_token_id": 2, "eos_token_id": 1}
BOTH_SIDES = {
    **SEQ2SEQ,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
}
ENCODER = {**BASE, "intermediate_size": 48, "max_position_embeddings": 64}

# One of each kind of block: what other families share with these is run by `make test-long`.
EVERYDAY = {
    "llama",
    "gemma3_text",
    "phi3",
    "gpt2",
    "opt",
    "bloom",
    "mixtral",
    "gpt_oss",
    "mamba",
    "modernbert",
    "t5",
    "whisper",
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {**GROUPED, "attention_bias": True, "mlp_bias": True},
    "mistral": {**GROUPED, "sliding_window": 4, "head_dim": 8},
    "qwen2": GROUPED,
    "qwen3": {**GROUPED, "head_dim": 8},
    "gemma2": {**GROUPED, "head_dim": 8, "sliding_window": 4},
    "gemma3_text": {**GROUPED, "head_dim": 8, "sliding_window": 4},
    "phi": GATED,
    "phi3": GROUPED,
    "stablelm": {**GROUPED, "use_qkv_bias": True},
    "opt": {**BASE, "ffn_dim": 48, "max_position_embeddings": 64, "word_embed_proj_dim": 32},
    "gpt2": {"n_embd": 32, "n_layer": 3, "n_head": 4, "vocab_size": 64, "n_positions": 64, "eos_token_id": 1},
    "gpt_neox": {**GATED, "max_position_embeddings": 64},
    "falcon": {**BASE, "bias": True},
    "bloom": {**BASE, "n_head": 4, "n_layer": 3},
    "mixtral": {**EXPERTS, "num_local_experts": 4},
    "qwen3_moe": {**EXPERTS, "num_experts": 4, "moe_intermediate_size": 24, "mlp_only_layers": [1]},
    "deepseek_v3": {
        **GATED,
        "num_key_value_heads": 4,
        "moe_intermediate_size": 24,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
        "first_k_dense_replace": 1,
    },
    "granitemoe": {**GROUPED, "num_experts_per_tok": 2, "num_local_experts": 4},
    "hunyuan_v1_moe": {**GROUPED, "num_experts": 4, "moe_topk": 2, "head_dim": 8},
    "gpt_oss": {**EXPERTS, "num_local_experts": 4, "sliding_window": 4},
    "mamba": {"hidden_size": 32, "num_hidden_layers": 3, "vocab_size": 64, "state_size": 4, "time_step_rank": 4},
    "mamba2": {
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "vocab_size": 64,
        "state_size": 8,
        "num_heads": 8,
        "head_dim": 8,
        "n_groups": 2,
        "chunk_size": 8,
    },
    "falcon_mamba": {"hidden_size": 32, "num_hidden_layers": 3, "vocab_size": 64, "state_size": 4, "time_step_rank": 4},
    "jamba": {
        **GROUPED,
        "num_hidden_layers": 4,
        "num_experts": 4,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "use_mamba_kernels": False,
        "mamba_d_state": 4,
        "mamba_dt_rank": 4,
    },
    "xglm": {
        "vocab_size": 64,
        "d_model": 32,
        "num_layers": 3,
        "attention_heads": 4,
        "ffn_dim": 48,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
    },
    "zamba2": {
        **BASE,
        "num_hidden_layers": 4,
        "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
        "intermediate_size": 48,
        "num_key_value_heads": 4,
        "n_mamba_heads": 8,
        "mamba_d_state": 4,
        "chunk_size": 8,
        "use_mamba_kernels": False,
    },
    "whisper": {
        **BOTH_SIDES,
        "num_mel_bins": 8,
        "max_source_positions": 12,
        "max_target_positions": 32,
        "bos_token_id": 2,
    },
    "t5": {**SEQ2SEQ, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "feed_forward_proj": "gated-gelu"},
    "bart": {
        **BOTH_SIDES,
        "max_position_embeddings": 64,
        "bos_token_id": 2,
        "forced_eos_token_id": 1,
    },
    "bert": ENCODER,
    "roberta": {**ENCODER, "max_position_embeddings": 66},
    "modernbert": {**ENCODER, "global_attn_every_n_layers": 2, "local_attention": 8},
}


def tiny(family: str, **changes: Any) -> Any:
    """The family's tiny model with random weights, large enough that errors show."""
    config = AutoConfig.for_model(family, **{**FAMILIES[family], **changes})
    torch.manual_seed(0)
    model = AUTO_CLASSES[task_of_architecture(config)].from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval().requires_grad_(False)


def batch_for(model: Any, size: int = 3, length: int = 12, *, seed: int = 0) -> Batch:
    """Random tokens, and random sound where the model hears."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, 64, (size, length), generator=generator)
    features = None
    if hasattr(model.config, "num_mel_bins"):
        frames = 2 * model.config.max_source_positions
        features = torch.randn(size, model.config.num_mel_bins, frames, generator=generator)
    return Batch(ids, None, features)


class FixedBatch(TokenBlocks):
    """Calibration data that is one batch."""

    def __init__(self, batch: Batch) -> None:
        super().__init__(batch.ids.numpy(), batch.ids.new_full((len(batch.ids),), batch.ids.shape[1]).numpy())
        object.__setattr__(self, "batch", batch)

    __slots__ = ("batch",)

    def head(self, tokens):
        return self

    def batches(self, size, device):
        yield self.batch

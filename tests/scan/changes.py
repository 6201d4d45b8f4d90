"""Sizes that must fit one another in some families, where the general rules of shrinking do not give such.

A family that is built in another way for one task has an entry of its own, with the task beside its name.
"""

from typing import Any

QWEN4: dict[str, Any] = {
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 8,
    "indexer_budget": 8,
    "indexer_compress_ratio": 2,
    "ngram_vocab_size_base": 64,
    "make_ngram_vocab_size_divisible_by": 8,
    "split_ngram_parts": 8,
}
REFORMER: dict[str, Any] = {
    "num_hidden_layers": 2,
    "axial_pos_embds": False,
    "attn_layers": ["local", "lsh"],
    "num_buckets": 4,
    "local_attn_chunk_length": 4,
    "lsh_attn_chunk_length": 4,
}
CHANGES: dict[str, dict[str, Any]] = {
    "bailing_hybrid": {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 8, "layer_group_size": 2},
    "bamba": {"mamba_n_heads": 8, "mamba_d_head": 8},
    "blt": {"encoder_hash_byte_group_vocab": 64},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "falcon_h1": {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_ssm": 64},
    "granitemoehybrid": {"mamba_n_heads": 8, "mamba_d_head": 8},
    "gemma3n_text": {
        "num_kv_shared_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "vocab_size_per_layer_input": 300,
        "vocab_offset": 300,
        "activation_sparsity_pattern": [0.0] * 4,
    },
    "gemma4_text": {"num_kv_shared_layers": 2, "layer_types": ["sliding_attention", "full_attention"] * 2},
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10000.0}}},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots3_note": {"text_config": {"head_dim": 12, "per_layer_config": {}}},
    "dots3_note_text": {"head_dim": 12, "per_layer_config": {}},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8, "moe_topk": 2, "num_experts": 4},
    "ministral": {"head_dim": 8},
    "nemotron": {"head_dim": 8, "num_key_value_heads": 2},
    "lfm2_moe": {"layer_types": ["conv", "conv", "full_attention", "conv"]},
    "longcat_flash": {"num_layers": 2},
    "dots1": {"n_shared_experts": 1, "n_routed_experts": 4, "num_experts_per_tok": 2},
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "clip_qkv": 8.0}},
    "esm": {"vocab_size": 300, "pad_token_id": 0, "mask_token_id": 3},
    "esmc": {"num_key_value_heads": 4, "vocab_size": 300},
    "mobilebert": {"hidden_size": 128, "embedding_size": 32, "intra_bottleneck_size": 32, "true_hidden_size": 32},
    "neomme": {"head_dim": 16},
    "perceiver": {"vocab_size": 300, "d_model": 32, "num_latents": 8, "d_latents": 32, "num_self_attends_per_block": 4},
    "qwen4_exp": {"text_config": QWEN4},
    "qwen4_exp_text": QWEN4,
    "reformer": REFORMER,
    "reformer causal_lm": {**REFORMER, "is_decoder": True},
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
        "num_key_value_heads": 4,
        "mamba_dt_rank": 4,
    },
    "zamba2": {
        "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
        "num_key_value_heads": 4,
        "mamba_headdim": 8,
        "n_mamba_heads": 8,
    },
}

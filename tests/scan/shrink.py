"""Shrink the configuration of any family of transformers: the same kinds of layers, a few small ones of each."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import AutoConfig

LAYERS = 4
VOCABULARY = 300  # a byte tokenizer's 260, and what some families add
SPECIAL = 16  # ids below are special tokens; the calibration tokens are drawn above

# The first pattern that matches a field's whole name gives its size; a smaller default stays.
SIZES: tuple[tuple[str, int], ...] = (
    (r"vocab_size|.*_vocab_size|vocab_size_per_layer_input|n_vocab", VOCABULARY),
    (r".*kv_shared_layers|first_k_dense_replace|num_dense_layers|num_nextn_predict_layers", 1),
    (r".*(num|n)_(hidden_)?layers|n_layers?|(num_)?(encoder|decoder)_layers|depth|num_hidden_groups", LAYERS),
    (r"num_(encoder|decoder|sparse_encoder|sparse_decoder)_layers|.*_(encoder|decoder)_layers|num_blocks", LAYERS),
    (r".*(num_key_value|kv_n|num_kv)_heads|.*_key_heads|num_query_groups", 2),
    (r"qk_rope_head_dim|rotary_dim", 4),
    (r".*heads?_dim|.*head_size|d_kv|d_head|v_head_dim|dim_head|kv_channels|mamba_d_head|mamba_headdim|headdim", 8),
    (r".*num_(attention|value)?_?heads|.*attention_heads|n_heads?|num_heads|.*_n_heads|index_n_heads", 4),
    (r".*(q|kv|o)_lora_rank|.*time_step_rank|mamba_dt_rank|laurel_rank|adapter_rank|.*_lowrank", 8),
    (r"num_experts_per_tok(en)?|moe_top_?k|num_selected_experts|moe_k|top_k", 2),
    (r".*num_.*experts|n_routed_experts|zero_expert_num", 4),
    (r".*(intermediate|ffn|ff|feed_forward|ffn_hidden|inner|mlp)_?(size|dim|hidden_size|mlp)?", 48),
    (r"dim_ff|d_inner|n_inner|dff|d_ff|ffn_hidden_size|intermediate_size_.*|.*_hidden_dim", 48),
    (r"hidden_size_per_layer_input", 8),
    (r".*hidden_size|d_model|n_embd|.*emb(ed(ding)?)?_(dim|size)|hidden_dim|dim|word_embed_proj_dim|lru_width", 32),
    (r"adapter_(in|out)_dim|adapter_input_size", 32),
    (r"prediction_head_size|cross_attention_hidden_size|query_pre_attn_scalar|d_latents|dim_model_base", 32),
    (r"n_group|topk_group|num_(expert_)?group", 1),
    (r".*d_state|state_size|ssm_state_size|.*n_groups|num_latents", 4),
    (r".*chunk_size|.*chunk_length|.*block_size|.*window.*|local_attention|attention_window", 8),
    (r"index_topk|index_topk_blocks", 4),
    (r"max_source_positions", 12),
    (r"max_target_positions", 64),
    (r".*max_.*position.*|n_positions|n_ctx|max_seq_len|context_length|model_max_length|max_length", 128),
    (r"num_mel_bins|input_feat_per_channel|feature_size|num_filters|.*channels?", 8),
    (r"image_size", 28),
    (r"patch_size", 14),
)
# Of multi-head latent attention, whose key heads have a part with positions and one without.
LATENT = {"qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "qk_head_dim": 12, "head_dim": 4, "num_key_value_heads": 4}
UNSIZED = ("chunk_size_feed_forward", "chunk_size_lm_head")


def tiny_configuration(family: str, changes: Mapping[str, Any] | None = None) -> Any:
    """The family's configuration with small sizes; whatever its class raises for them is the caller's."""
    defaults = AutoConfig.for_model(family).to_dict()
    return AutoConfig.for_model(family, **merged(shrunken(defaults), changes or {}))


def shrunken(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a configuration to change, and the values that make it small."""
    chosen = _chosen_layers(fields)
    small: dict[str, Any] = {}
    if "qk_rope_head_dim" in fields:
        small |= {name: size for name, size in LATENT.items() if isinstance(fields.get(name), int)}
    for name, value in fields.items():
        if name in UNSIZED or name in small or isinstance(value, bool):
            continue
        if isinstance(value, dict) and ("config" in name or name in ("encoder", "decoder", "text_encoder")):
            small[name] = shrunken(value) | {key: value[key] for key in ("model_type",) if key in value}
        elif name.endswith(("token_id", "token_index")) or name in ("unk_index", "mask_index", "pad_index"):
            small |= _special(name, value)
        elif isinstance(value, int):
            small |= _sized(name, value)
        elif isinstance(value, list) and len(value) == _layers(fields) and len(value) > LAYERS:
            small[name] = [value[index] for index in chosen]
    return small


def merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Two nested mappings as one, the second's values before the first's."""
    both = {**first, **second}
    for key in first.keys() & second.keys():
        if isinstance(first[key], Mapping) and isinstance(second[key], Mapping):
            both[key] = merged(first[key], second[key])
    return both


def _sized(name: str, value: int) -> dict[str, int]:
    for pattern, size in SIZES:
        if re.fullmatch(pattern, name):
            return {name: min(size, value)} if value > 0 else {}
    return {}


def _special(name: str, value: Any) -> dict[str, Any]:
    """A special token's id within the small vocabulary."""
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    small = ids.get(name, 3 + sum(map(ord, name)) % (SPECIAL - 3))
    if value is None or (isinstance(value, int) and value < 0):
        return {}
    return {name: [small] if isinstance(value, list) else small}


def _layers(fields: Mapping[str, Any]) -> int:
    known = (fields.get(name) for name in ("num_hidden_layers", "n_layer", "num_layers", "n_layers"))
    return next((number for number in known if isinstance(number, int)), 0)


def _chosen_layers(fields: Mapping[str, Any]) -> Sequence[int]:
    """The first layers of each kind, and the lowest of the others, in their order."""
    total = _layers(fields)
    lists = [value for value in fields.values() if isinstance(value, list) and len(value) == total > LAYERS]
    kinds = [str([value[index] for value in lists if isinstance(value[index], str)]) for index in range(total)]
    first = [kinds.index(kind) for kind in dict.fromkeys(kinds)][:LAYERS]
    rest = [index for index in range(total) if index not in first]
    return sorted([*first, *rest[: LAYERS - len(first)]])

from itertools import pairwise

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from lillama.errors import ConfigError
from lillama.model.blocks import find_blocks, run_blocks

SMALL = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 64}
FAMILIES = {
    "llama": {"intermediate_size": 64},
    "mistral": {"intermediate_size": 64, "num_key_value_heads": 2, "sliding_window": 4},
    "phi": {"intermediate_size": 64},
    "phi3": {"intermediate_size": 64, "pad_token_id": 0},
    "qwen2": {"intermediate_size": 64, "num_key_value_heads": 2},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "gemma2": {"intermediate_size": 64, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 4},
    "gpt_neox": {"intermediate_size": 64},
}


@pytest.fixture(params=FAMILIES)
def family(request):
    torch.manual_seed(0)
    config = AutoConfig.for_model(request.param, **SMALL, **FAMILIES[request.param])
    return AutoModelForCausalLM.from_config(config).eval()


def test_blocks_are_found_by_class(family):
    _, blocks = find_blocks(family)
    assert len(blocks) == 3


@torch.no_grad()
def test_a_block_replayed_from_its_captured_call_is_exact(family):
    """With a padded batch, so that masks matter."""
    _, blocks = find_blocks(family)
    ids = torch.randint(1, 64, (2, 9))
    mask = torch.arange(9) < torch.tensor([[9], [5]])
    calls = []
    run_blocks(family, ids, mask=mask, wanted=range(3), on_block=calls.append)
    assert [call.index for call in calls] == [0, 1, 2]
    for call in calls:
        assert torch.equal(call.replay(blocks[call.index], call.hidden), call.output)
    for below, above in pairwise(calls):
        assert torch.equal(below.output, above.hidden)


@torch.no_grad()
def test_nothing_above_the_last_wanted_block_is_run(tiny_model):
    _, blocks = find_blocks(tiny_model)
    ran = []
    for index, block in enumerate(blocks):
        block.register_forward_hook(lambda *_, index=index: ran.append(index))
    tiny_model.lm_head.register_forward_hook(lambda *_: ran.append("head"))
    run_blocks(
        tiny_model, torch.ones(1, 4, dtype=torch.long), mask=None, wanted=range(1, 3), on_block=lambda call: None
    )
    assert ran[:2] == [0, 1]
    assert set(ran) <= {0, 1, 2}


def test_hooks_do_not_outlive_an_error(tiny_model):
    def fail(call):
        raise KeyError("mine")

    _, blocks = find_blocks(tiny_model)
    with pytest.raises(KeyError, match="mine"):
        run_blocks(tiny_model, torch.ones(1, 4, dtype=torch.long), mask=None, wanted=range(4), on_block=fail)
    assert not any(block._forward_hooks for block in blocks)


def test_an_encoder_decoder_is_refused_with_the_lists_it_has():
    config = AutoConfig.for_model("bart", d_model=16, encoder_layers=1, decoder_layers=1, vocab_size=32)
    with torch.device("meta"):
        model = AutoModelForSeq2SeqLM.from_config(config)
    with pytest.raises(ConfigError, match=r"model\.encoder\.layers.*model\.decoder\.layers"):
        find_blocks(model)

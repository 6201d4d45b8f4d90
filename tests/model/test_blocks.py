from itertools import pairwise

import pytest
import torch

from lillama.core.errors import ConfigError
from lillama.model.blocks import EMBEDDING, Blocks
from lillama.model.calls import Swap
from lillama.model.inputs import Batch, model_inputs
from lillama.model.runs import call_after, run_blocks
from tests.families import FAMILIES, batch_for, tiny

SEQ2SEQ = ("whisper", "t5", "bart")
HYBRIDS = ("jamba", "zamba2")


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_are_found_by_class(family):
    blocks = Blocks(tiny(family))
    stacks = 2 if family in SEQ2SEQ else 1
    assert [len(stack.modules) for stack in blocks.stacks] == [4 if family in HYBRIDS else 4 - stacks] * stacks
    for index in range(len(blocks)):
        assert blocks.index_of(f"{blocks.name(index)}.anything") == index
        assert blocks.model.get_submodule(blocks.name(index)) is blocks[index]


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_block_replayed_from_its_captured_call_is_exact(family):
    """With a padded batch, so that masks matter."""
    model = tiny(family)
    blocks = Blocks(model)
    batch = batch_for(model, 2, 10)
    mask = torch.arange(10) < torch.tensor([[10], [5]])
    inputs = model_inputs(model, Batch(batch.ids, mask, batch.features))
    calls = []
    run_blocks(blocks, inputs.arguments, wanted=range(len(blocks)), on_block=calls.append)
    assert [call.index for call in calls] == list(range(len(blocks)))
    for call in calls:
        assert torch.equal(call.replay(blocks[call.index], call.hidden), call.output)
    for below, above in pairwise(calls):
        if blocks.stack(below.index) == blocks.stack(above.index):
            assert torch.equal(below.output, above.hidden)


@pytest.mark.parametrize("family", SEQ2SEQ)
@torch.no_grad()
def test_the_way_from_encoder_to_decoder_is_the_models_own(family):
    """With the teacher's own states put in, the decoder is called just as it is called anyway."""
    model = tiny(family)
    blocks = Blocks(model)
    inputs = model_inputs(model, batch_for(model)).arguments
    calls = []
    run_blocks(blocks, inputs, wanted=range(4), on_block=calls.append)
    again = call_after(blocks, inputs, given={0: calls[1].result}, until=2)
    context = Swap(calls[2], again)
    for call in calls[2:]:
        replayed = call.replay(blocks[call.index], call.hidden, context)
        torch.testing.assert_close(replayed, call.output)
    other = call_after(blocks, inputs, given={0: _doubled(calls[1].result)}, until=2)
    assert not torch.allclose(calls[2].replay(blocks[2], calls[2].hidden, Swap(calls[2], other)), calls[2].output)


def _doubled(result):
    return (2 * result[0], *result[1:]) if isinstance(result, tuple) else 2 * result


@pytest.mark.parametrize("family", ["llama", "gemma2", "opt", "falcon_mamba"])
@torch.no_grad()
def test_the_ends_are_blocks_of_their_own(family):
    model = tiny(family)
    blocks = Blocks(model)
    inputs = model_inputs(model, batch_for(model))
    calls = []
    run_blocks(blocks, inputs.arguments, wanted=range(EMBEDDING, blocks.head + 1), on_block=calls.append)
    assert torch.equal(calls[0].hidden, inputs.arguments["input_ids"])
    first = call_after(blocks, inputs.arguments, given={EMBEDDING: calls[0].output}, until=0)
    assert torch.equal(first.hidden, calls[1].hidden)
    head = call_after(blocks, inputs.arguments, given={0: calls[-2].result}, until=blocks.head)
    assert torch.equal(head.hidden, calls[-1].hidden)


@torch.no_grad()
def test_nothing_above_the_last_wanted_block_is_run(tiny_model):
    blocks = Blocks(tiny_model)
    ran = []
    for index in range(len(blocks)):
        blocks[index].register_forward_hook(lambda *_, index=index: ran.append(index))
    tiny_model.lm_head.register_forward_hook(lambda *_: ran.append("head"))
    ids = {"input_ids": torch.ones(1, 4, dtype=torch.long)}
    run_blocks(blocks, ids, wanted=range(1, 3), on_block=lambda call: None)
    assert ran[:2] == [0, 1]
    assert set(ran) <= {0, 1, 2}


def test_hooks_do_not_outlive_an_error(tiny_model):
    def fail(call):
        raise KeyError("mine")

    blocks = Blocks(tiny_model)
    with pytest.raises(KeyError, match="mine"):
        run_blocks(blocks, {"input_ids": torch.ones(1, 4, dtype=torch.long)}, wanted=range(4), on_block=fail)
    assert not any(blocks[index]._forward_hooks for index in range(len(blocks)))


@torch.no_grad()
def test_a_model_with_code_of_its_own_has_its_longest_list_of_one_class(monkeypatch):
    """As remote code has it: blocks that are plain modules."""
    model = tiny("llama")
    monkeypatch.setattr("lillama.model.blocks.GradientCheckpointingLayer", torch.nn.Identity)
    blocks = Blocks(model)
    assert [stack.name for stack in blocks.stacks] == ["model.layers"]
    calls = []
    run_blocks(blocks, {"input_ids": torch.ones(1, 4, dtype=torch.long)}, wanted=range(3), on_block=calls.append)
    assert len(calls) == 3


def test_a_model_without_blocks_is_refused():
    with pytest.raises(ConfigError, match="Linear: has no list of blocks"):
        Blocks(torch.nn.Linear(2, 2))
    with pytest.raises(LookupError, match="lies in no block"):
        Blocks(tiny("llama")).index_of("model.norm")

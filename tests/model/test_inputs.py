import pytest
import torch

from lillama.model.inputs import Batch, model_inputs
from tests.families import FAMILIES, batch_for, tiny


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_every_family_takes_its_inputs(family):
    model = tiny(family)
    inputs = model_inputs(model, batch_for(model, 2, 9))
    logits = model(**inputs.arguments).logits
    assert torch.isfinite(logits).all()
    assert len(inputs.masks) == (2 if model.config.is_encoder_decoder else 1)
    if inputs.targets is not None:
        assert logits.shape[:2] == inputs.targets.shape


def test_an_encoder_decoder_reads_the_first_half_and_says_the_second():
    model = tiny("t5")
    ids = torch.arange(10, 22).view(1, 12)
    inputs = model_inputs(model, Batch(ids))
    assert inputs.arguments["input_ids"].tolist() == [[10, 11, 12, 13, 14, 15]]
    assert inputs.targets.tolist() == [[16, 17, 18, 19, 20, 21]]
    assert inputs.arguments["decoder_input_ids"].tolist() == [[2, 16, 17, 18, 19, 20]]
    assert inputs.masks == (None, None)


def test_halves_are_those_of_each_rows_real_tokens():
    model = tiny("bart")
    ids = torch.arange(10, 24).view(2, 7)
    mask = torch.arange(7) < torch.tensor([[7], [3]])
    inputs = model_inputs(model, Batch(ids, mask))
    read, write = inputs.masks
    assert inputs.arguments["input_ids"][read].tolist() == [10, 11, 12, 13, 17, 18]
    assert inputs.targets[write].tolist() == [14, 15, 16, 19]
    assert set(inputs.targets[~write].tolist()) == {-100}
    assert torch.equal(inputs.arguments["attention_mask"].bool(), read)
    assert int(read.sum() + write.sum()) == int(mask.sum())


def test_a_speech_model_hears_everything_and_says_the_tokens():
    model = tiny("whisper")
    batch = batch_for(model, 2, 5)
    mask = torch.arange(5) < torch.tensor([[5], [2]])
    inputs = model_inputs(model, Batch(batch.ids, mask, batch.features))
    assert inputs.masks[0] is None
    assert torch.equal(inputs.masks[1], mask)
    assert inputs.targets[~mask].tolist() == [-100] * 3
    bf16 = model_inputs(model.bfloat16(), batch)
    assert bf16.arguments["input_features"].dtype == torch.bfloat16


def test_a_start_token_that_the_transcript_has_already_is_not_doubled():
    model = tiny("whisper")
    batch = batch_for(model, 2, 5)
    ids = torch.tensor([[2, 10, 11, 1], [2, 12, 1, 1]])
    inputs = model_inputs(model, Batch(ids, torch.arange(4) < torch.tensor([[4], [3]]), batch.features))
    assert inputs.arguments["decoder_input_ids"].tolist() == [[2, 10, 11], [2, 12, 1]]
    assert inputs.targets.tolist() == [[10, 11, 1], [12, 1, -100]]

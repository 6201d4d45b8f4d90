"""The loss of predictions is the library's own, and padding has no part in it."""

from dataclasses import replace

import pytest
import torch

from lillama.model.inputs import Batch
from lillama.model.prediction import NOT_PREDICTED, predicted, prediction_loss, predictions
from tests.families import batch_for, tiny
from tests.finetune.examples import padded


def test_the_loss_is_the_models_own(tiny_model):
    batch = Batch(torch.randint(4, 260, (3, 12)))
    ours = prediction_loss(tiny_model, batch, count=predicted(tiny_model, batch))
    torch.testing.assert_close(ours, tiny_model(batch.ids, labels=batch.ids).loss)


@pytest.mark.parametrize("family", ["t5", "bart", "whisper"])
def test_the_loss_of_an_encoder_decoder_is_its_own(family):
    model = tiny(family)
    batch = batch_for(model)
    arguments, targets = predictions(model, batch)
    own = model(**arguments, labels=targets).loss
    torch.testing.assert_close(prediction_loss(model, batch, count=predicted(model, batch)), own)


def test_padding_is_neither_predicted_nor_does_it_matter(tiny_model):
    (batch,) = padded(2).batches(2, "cpu")
    _, targets = predictions(tiny_model, batch)
    assert (targets != NOT_PREDICTED).sum(1).tolist() == [15, 4]
    other = replace(batch, ids=batch.ids.masked_fill(~batch.mask, 77))
    one, two = (prediction_loss(tiny_model, given, count=1) for given in (batch, other))
    torch.testing.assert_close(one, two)

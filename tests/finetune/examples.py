"""What the tests of fine-tuning share: recipes, small models, batches that are there already."""

import numpy as np
import torch

from lillama.config import FactorForm, FinetuneConfig, FinetuneDataConfig, Source
from lillama.data.tokens import TokenBlocks
from lillama.finetune import TrainableModel, fine_tune
from tests.conftest import random_tokens
from tests.model.test_families import mixed_ranks
from tests.model.test_student import student_of

DATA = FinetuneDataConfig(source=Source.stdlib_docs)


def recipe(**options):
    return FinetuneConfig(**{"data": DATA, "lr": 1e-2, "batch_size": 4, **options})


def small(model, form=FactorForm.plain):
    """A model with factors in most of its matrices."""
    return student_of(model, mixed_ranks(model), form).settle()


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def tune(model, data, config):
    """The fine-tuned model, and the loss of every update."""
    tuned, losses = TrainableModel(model, config), []
    fine_tune(tuned, data, config, on_update=lambda update: losses.append(update.loss))
    return tuned.settle(), losses


class Examples:
    """Batches that are there already."""

    def __init__(self, *batches):
        self.given = batches
        self.tokens = sum(batch.tokens for batch in batches)

    def __len__(self):
        return len(self.given)

    def batches(self, size, device):
        yield from self.given


def padded(count=6, length=16):
    blocks = random_tokens(count, length)
    return TokenBlocks(blocks.ids, np.array([length, 5, 9, 2, length, 3][:count], np.int32))


def changed(model, before):
    """The names of what is not as it was."""
    return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}

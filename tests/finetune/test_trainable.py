"""What learns, and what must not."""

import pytest

from lillama.config import Scope, Tune
from lillama.model.lowrank import LowRank
from tests.conftest import random_tokens
from tests.families import batch_for, tiny
from tests.finetune.examples import Examples, changed, recipe, small, tune, weights


def test_factors_alone_learn_where_nothing_else_may(tiny_model):
    model = small(tiny_model)
    before = weights(model)
    after, _ = tune(model, random_tokens(), recipe(train=Tune.factors))
    pairs = tuple(f"{name}." for name, module in after.named_modules() if isinstance(module, LowRank))
    found = changed(after, before)
    assert found == {name for name in before if name.startswith(pairs)}


@pytest.mark.parametrize("family", ["whisper", "t5"])
@pytest.mark.parametrize("train", list(Tune), ids=lambda train: train.name)
def test_the_other_side_is_frozen(family, train):
    model = small(tiny(family))
    before = weights(model)
    after, _ = tune(model, Examples(batch_for(model)), recipe(train=train, scope=Scope.decoder))
    found = changed(after, before)
    assert any("decoder" in name.split(".") for name in found)
    assert not [name for name in found if "encoder" in name.split(".") and "embed_tokens" not in name]

"""A small compressed checkpoint on disk: odd ranks, biases, dense matrices beside, several shards."""

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from lillama.config import FactorForm
from lillama.model.byte_tokenizer import byte_tokenizer
from lillama.model.checkpoint import save_checkpoint
from tests.families import tiny
from tests.model.test_families import mixed_ranks, perturb_biases
from tests.model.test_student import student_of


class Saved(NamedTuple):
    """A compressed model, the folder it was saved to, some token ids and its logits for them."""

    model: Any
    folder: Path
    ids: Tensor
    logits: Tensor


def make_checkpoint(
    family: str, folder: Path, *, ends: bool = False, form: FactorForm = FactorForm.plain, **changes: Any
) -> Saved:
    """Compress a family's tiny model and save it."""
    model = tiny(family, **changes)
    perturb_biases(model)
    ranks = mixed_ranks(model, ends=ends)
    model = student_of(model, ranks, form).settle()
    save_checkpoint(model, byte_tokenizer(), folder, plan={"ranks": ranks}, card="#", max_shard_size="30KB")
    ids = torch.randint(4, 60, (2, 8), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return Saved(model, folder, ids, model(ids).logits)


@pytest.fixture(scope="session", params=FactorForm, ids=lambda form: form.name)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """A Llama with a byte tokenizer, of either kind of factors; nobody may change it."""
    return make_checkpoint("llama", tmp_path_factory.mktemp("saved") / "llama", form=request.param, vocab_size=260)


@pytest.fixture(params=[(family, form) for family in ("llama", "mixtral") for form in FactorForm], ids=str)
def either(request: pytest.FixtureRequest, tmp_path: Path) -> Saved:
    """A model of linears, and one with fused experts and a tied low-rank embedding, of either kind of factors."""
    family, form = request.param
    return make_checkpoint(family, tmp_path / family, ends=family == "mixtral", form=form, vocab_size=260)

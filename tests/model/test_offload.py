"""Blocks that stay in host memory: the same model, from weights that are brought and let go of."""

import copy

import pytest
import torch

from lillama.config import BlockwiseConfig, DistillConfig, FeatureConfig, ScheduleConfig, StudentInputs
from lillama.distill import distill
from lillama.init import start_factors
from lillama.model.blocks import Blocks
from lillama.model.inputs import model_inputs
from lillama.model.offload import offload_blocks
from lillama.model.runs import run_blocks
from lillama.model.student import Student
from tests.checkpoints import same, weights
from tests.conftest import TINY_RUN, random_tokens
from tests.distill.test_joint import loss_of
from tests.families import FAMILIES, batch_for, tiny
from tests.model.test_families import mixed_ranks

IDS = torch.arange(10, 26).view(2, 8)


def whole_and_visiting(family="llama", **changes):
    """A model in float32, and the same with blocks in bfloat16 that are widened while they run.

    On one device, the dtype shows where a block is.
    """
    whole, visiting = (tiny(family, **changes).bfloat16() for _ in range(2))
    blocks = Blocks(visiting)
    offload_blocks(visiting, [blocks[index] for index in range(len(blocks))], torch.device("cpu"), torch.float32)
    return whole.float(), visiting


def dtypes(blocks):
    return [{p.dtype for p in blocks[index].parameters()} for index in range(len(blocks))]


def test_only_the_block_that_runs_is_there():
    _, model = whole_and_visiting(num_hidden_layers=4)
    blocks, seen = Blocks(model), []
    assert model.dtype == torch.float32
    run_blocks(blocks, {"input_ids": IDS}, wanted=range(1, 3), on_block=lambda call: seen.append(dtypes(blocks)))
    narrow, wide = {torch.bfloat16}, {torch.float32}
    assert seen == [[narrow, wide, narrow, narrow], [narrow, narrow, wide, narrow]]
    assert dtypes(blocks) == [narrow] * 4, "it leaves when the run is cut short, too"
    seen.clear()
    given = {0: torch.zeros(2, 8, model.config.hidden_size)}
    entered = []
    for index in (0, 1):
        blocks[index].input_layernorm.register_forward_hook(lambda *_, index=index: entered.append(index))
    run_blocks(blocks, {"input_ids": IDS}, wanted=[3], on_block=lambda call: seen.append(dtypes(blocks)), given=given)
    assert seen == [[narrow, narrow, narrow, wide]]
    assert not entered, "blocks whose output is known are neither run nor brought"


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_the_outputs_are_those_of_the_whole_model(family):
    whole, visiting = whole_and_visiting(family)
    batch = batch_for(whole)
    one, two = (model(**model_inputs(model, batch).arguments) for model in (whole, visiting))
    torch.testing.assert_close(one.logits, two.logits, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("schedule", [ScheduleConfig(), BlockwiseConfig()], ids=["joint", "blockwise"])
@pytest.mark.parametrize("family", ["llama", "mixtral", "mamba"])
def test_a_student_learns_what_it_learns_from_the_whole_model(family, schedule):
    tokens = random_tokens(4, 16)
    tokens.ids[:] %= 64

    models = whole_and_visiting(family)
    # Both start from the same factors: those of blocks in bfloat16 would be rounded.
    factors = start_factors(models[0], mixed_ranks(models[0]), tokens, FeatureConfig())

    def learnt(model):
        student = Student(model, copy.deepcopy(factors))
        config = DistillConfig(schedule=schedule, batch_size=2, lr=1e-3)
        distill(student, tokens, config, loss_of(StudentInputs.teacher_student))
        with student.in_place() as compressed, torch.no_grad():
            return compressed(input_ids=IDS).logits

    one, two = map(learnt, models)
    assert torch.equal(one, two)
    blocks = Blocks(models[1])
    assert dtypes(blocks) == [{torch.bfloat16}] * len(blocks), "none has stayed"


def test_a_run_with_offload_gives_the_factors_of_one_without(cli, tmp_path):
    """On the command line; on a CPU nothing needs to move, but every way through is taken."""
    for offload in (False, True):
        status, _, err = cli(*TINY_RUN, f"model.offload={offload}", f"hydra.run.dir={tmp_path / str(offload)}")
        assert status == 0, err
    assert same(weights(tmp_path / "False"), weights(tmp_path / "True"))

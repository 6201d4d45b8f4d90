"""torch.compile without graph breaks, and torch.export."""

import pytest
import torch
import torch._dynamo

from lillama.config import FactorForm
from lillama.model.inputs import model_inputs
from lillama.model.lowrank import is_fused_experts
from tests.families import batch_for, tiny
from tests.marks import long_unless
from tests.model.test_families import mixed_ranks
from tests.model.test_student import student_of


def compressed(family, form=FactorForm.plain, *, ends=False):
    model = tiny(family, **FEW_BLOCKS[family])
    if any(is_fused_experts(module) for module in model.modules()):
        model.set_experts_implementation("grouped_mm")  # a loop over experts breaks the graph, dense or not
    return student_of(model, mixed_ranks(model, ends=ends), form).settle()


FAMILIES = ["llama", "phi3", "gpt2", "opt", "t5", "whisper", "mamba", "mixtral", "gpt_oss"]
# A second block of the same kind is as much again to trace; gpt-oss has two kinds in turn.
FEW_BLOCKS = {family: {"num_hidden_layers": 1} for family in ("llama", "phi3", "opt", "mamba", "mixtral")}
FEW_BLOCKS |= {"gpt2": {"n_layer": 1}, "t5": {"num_layers": 1}, "whisper": {"encoder_layers": 1, "decoder_layers": 1}}
FEW_BLOCKS["gpt_oss"] = {"num_hidden_layers": 2}
ONCE = {("llama", FactorForm.plain), ("mixtral", FactorForm.pivoted)}
PIVOTED = [(family, FactorForm.pivoted) for family in ("llama", "mixtral")]  # the others have the same two modules


@pytest.mark.parametrize(
    ("family", "form"),
    long_unless(
        lambda family, form: (family, form) in ONCE, [*((family, FactorForm.plain) for family in FAMILIES), *PIVOTED]
    ),
    ids=str,
)
def test_dynamo_finds_no_break(family, form):
    model = compressed(family, form)
    torch._dynamo.reset()
    with torch.no_grad():
        # Few tokens: Mamba's scan is traced once for each.
        found = torch._dynamo.explain(model)(**model_inputs(model, batch_for(model, length=4)).arguments)
    assert found.graph_break_count == 0, found.break_reasons


@pytest.mark.parametrize(
    ("family", "ends", "form"),
    long_unless(
        lambda family, ends, form: (family, form) in {("llama", FactorForm.pivoted), ("mixtral", FactorForm.plain)},
        [
            *((name, name in ("llama", "mixtral"), FactorForm.plain) for name in ("llama", "phi3", "opt", "mixtral")),
            *((family, True, form) for family, form in PIVOTED),
        ],
    ),
    ids=str,
)
@torch.no_grad()
def test_an_exported_model_computes_the_same(family, ends, form):
    model = compressed(family, form, ends=ends)
    arguments = {"input_ids": batch_for(model).ids, "use_cache": False}
    exported = torch.export.export(model, (), arguments).module()
    torch.testing.assert_close(exported(**arguments).logits, model(**arguments).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("form", long_unless(lambda form: form is FactorForm.pivoted, FactorForm))
@torch.no_grad()
def test_a_compiled_model_computes_the_same(form):
    """On the eager backend: what is compared is the graph, and no C++ compiler is needed."""
    model = compressed("llama", form, ends=True)
    ids = batch_for(model).ids
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(ids, use_cache=False).logits, model(ids).logits, atol=1e-5, rtol=1e-5)

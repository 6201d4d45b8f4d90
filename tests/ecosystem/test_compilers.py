"""torch.compile without graph breaks, and torch.export."""

import pytest
import torch
import torch._dynamo

from lillama.model.inputs import model_inputs
from lillama.runtime import is_fused_experts
from tests.families import batch_for, tiny
from tests.model.test_families import mixed_ranks
from tests.model.test_student import student_of


def compressed(family):
    model = tiny(family)
    if any(is_fused_experts(module) for module in model.modules()):
        model.set_experts_implementation("grouped_mm")  # a loop over experts breaks the graph, dense or not
    return student_of(model, mixed_ranks(model)).settle()


@pytest.mark.parametrize("family", ["llama", "phi3", "gpt2", "opt", "t5", "whisper", "mamba", "mixtral", "gpt_oss"])
def test_dynamo_finds_no_break(family):
    model = compressed(family)
    torch._dynamo.reset()
    with torch.no_grad():
        found = torch._dynamo.explain(model)(**model_inputs(model, batch_for(model)).arguments)
    assert found.graph_break_count == 0, found.break_reasons


@pytest.mark.parametrize("family", ["llama", "phi3", "opt", "mixtral"])
@torch.no_grad()
def test_an_exported_model_computes_the_same(family):
    model = compressed(family)
    arguments = {"input_ids": batch_for(model).ids, "use_cache": False}
    exported = torch.export.export(model, (), arguments).module()
    torch.testing.assert_close(exported(**arguments).logits, model(**arguments).logits, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_compiled_model_computes_the_same():
    """On the eager backend: what is compared is the graph, and no C++ compiler is needed."""
    model = compressed("llama")
    ids = batch_for(model).ids
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(ids, use_cache=False).logits, model(ids).logits, atol=1e-5, rtol=1e-5)

import re
from itertools import product

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from lillama.algebra.factorize import svd_factors
from lillama.config import FactorForm, FeatureConfig, StudentInputs
from lillama.init import start_factors
from lillama.init.moments import input_moments
from lillama.model.blocks import Blocks
from lillama.model.byte_tokenizer import byte_tokenizer
from lillama.model.checkpoint import load_checkpoint, save_checkpoint
from lillama.model.inputs import Batch, model_inputs
from lillama.model.lowrank import LowRankExperts, expert_matrices
from lillama.model.surgery import matrix
from tests.conftest import random_tokens
from tests.families import batch_for, tiny
from tests.marks import long_unless
from tests.model.test_families import FixedBatch
from tests.model.test_student import student_of

EXPERT_FAMILIES = {
    "mixtral": "model.layers.1.mlp.experts",
    "qwen3_moe": "model.layers.0.mlp.experts",
    "deepseek_v3": "model.layers.2.mlp.experts",
    "gpt_oss": "model.layers.1.mlp.experts",
    "jamba": "model.layers.1.feed_forward.experts",
}


def compressed(family, form=FactorForm.plain, **ranks):
    model = tiny(family)
    names = {f"{EXPERT_FAMILIES[family]}.{parameter}": rank for parameter, rank in ranks.items()}
    return student_of(model, names, form).settle(), names


@pytest.mark.parametrize("form", FactorForm)
@pytest.mark.parametrize("family", EXPERT_FAMILIES)
@torch.no_grad()
def test_full_rank_experts_are_the_dense_ones(family, form):
    model = tiny(family)
    model.set_experts_implementation("eager")  # no grouped product takes the empty B of pivots that are all columns
    name = EXPERT_FAMILIES[family]
    dense = model.get_submodule(name)
    full = {parameter: min(expert_matrices(dense, parameter).shape[1:]) for parameter in ("gate_up_proj", "down_proj")}
    factorised = student_of(model, {f"{name}.{p}": rank for p, rank in full.items()}, form)
    index = Blocks(model).index_of(name)
    own = factorised.blocks[index].get_submodule(name.removeprefix(f"{Blocks(model).name(index)}."))
    hidden, routes = torch.randn(7, 32), torch.randint(0, 4, (7, 2))
    weights = torch.rand(7, 2)
    torch.testing.assert_close(own(hidden, routes, weights), dense(hidden, routes, weights), atol=1e-4, rtol=1e-4)


BOTH, DOWN, UP = {"gate_up_proj": 8, "down_proj": 8}, {"down_proj": 16}, {"gate_up_proj": 7}


@pytest.mark.parametrize(
    ("ranks", "family", "form"),
    long_unless(
        lambda ranks, family, form: ranks is BOTH or (family == "mixtral" and form is FactorForm.pivoted),
        product((BOTH, DOWN, UP), EXPERT_FAMILIES, FactorForm),
    ),
    ids=str,
)
@torch.no_grad()
def test_eager_and_grouped_implementations_agree(family, ranks, form, tmp_path):
    model, names = compressed(family, form, **ranks)
    save_checkpoint(model, byte_tokenizer(), tmp_path, plan={"ranks": names}, card="#")
    ids = batch_for(model).ids
    logits = [
        load_checkpoint(tmp_path, experts_implementation=way)(ids).logits
        for way in ("eager", "grouped_mm", "batched_mm")
    ]
    torch.testing.assert_close(logits[0], logits[1], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(logits[0], logits[2], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_a_route_past_the_last_expert_is_skipped():
    """Expert parallelism marks tokens of other machines so."""
    model, _ = compressed("mixtral", gate_up_proj=8, down_proj=8)
    experts = model.get_submodule(EXPERT_FAMILIES["mixtral"])
    hidden, weights = torch.randn(3, 32), torch.rand(3, 1)
    both = experts(hidden, torch.tensor([[0], [4], [2]]), weights)
    assert torch.equal(both[1], torch.zeros(32))
    torch.testing.assert_close(both[2], experts(hidden[2:], torch.tensor([[2]]), weights[2:])[0])


@pytest.mark.parametrize("family", EXPERT_FAMILIES)
@torch.no_grad()
def test_an_experts_moments_are_those_of_the_tokens_routed_to_it(family):
    """Compared with what a plain loop over the experts sees; padding is routed and does not count."""
    model = tiny(family)
    name = EXPERT_FAMILIES[family]
    experts = model.get_submodule(name)
    ids = batch_for(model, 3, 12).ids
    mask = torch.arange(12) < torch.tensor([[12], [5], [9]])
    data = FixedBatch(Batch(ids, mask))
    moments = input_moments(model, [f"{name}.gate_up_proj", f"{name}.down_proj"], data)
    seen = []
    hook = experts.register_forward_pre_hook(lambda _, args: seen.append(args))
    model(**model_inputs(model, Batch(ids, mask)).arguments)
    hook.remove()
    hidden, routes = seen[0][0], seen[0][1]
    counts = 0
    for expert in range(4):
        rows = [x for x, route, real in zip(hidden, routes, mask.flatten(), strict=True) if real and expert in route]
        x = torch.stack(rows) if rows else hidden[:0]
        up = x @ expert_matrices(experts, "gate_up_proj")[expert].T
        if experts.has_bias:
            up = up + experts.gate_up_proj_bias[expert]
        for parameter, inputs in (("gate_up_proj", x), ("down_proj", experts._apply_gate(up))):
            moment = moments[f"{name}.{parameter}"][expert]
            assert moment.count == len(rows)
            expected = inputs.double().T @ inputs.double() / max(len(rows), 1)
            torch.testing.assert_close(moment.value, expected, atol=1e-4, rtol=1e-3)
        counts += len(rows)
    assert counts == 2 * int(mask.sum())


@torch.no_grad()
def test_an_expert_without_tokens_is_named_and_starts_by_svd(caplog):
    model = tiny("mixtral")
    gate = model.model.layers[1].mlp.gate
    gate.weight[2] = 0
    gate.weight[:, 0] = torch.tensor([0.0, 0.0, -1e4, 0.0])  # whoever has a first coordinate avoids expert 2 ...
    model.model.layers[1].post_attention_layernorm.weight[1:] = 0  # ... and it is the only one there is
    name = "model.layers.1.mlp.experts.gate_up_proj"
    data = FixedBatch(Batch(model_inputs(model, batch_for(model)).arguments["input_ids"][:1, :1]))
    modules = start_factors(model, {name: 5}, data, FeatureConfig())
    pair = modules[name.rpartition(".")[0]].lowrank["gate_up_proj"]
    idle = [int(word) for word in re.search(r"reached experts ([\d, ]+) of", caplog.text)[1].split(", ")]
    assert name in caplog.text
    assert idle
    for expert in idle:
        svd = svd_factors(weight=matrix(model, name)[expert], rank=5)
        torch.testing.assert_close(pair.A[expert] @ pair.B[expert], svd.a @ svd.b, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_each_experts_factors_have_the_least_error_on_its_own_tokens():
    model = tiny("mixtral")
    name = "model.layers.0.mlp.experts.down_proj"
    data = FixedBatch(batch_for(model, 8, 16))
    moments = input_moments(model, [name], data)[name]
    own = start_factors(model, {name: 4}, data, FeatureConfig())[name.rpartition(".")[0]].lowrank["down_proj"]
    for expert, moment in enumerate(moments):
        w, c = matrix(model, name)[expert].double(), moment.value
        svd = svd_factors(weight=w, rank=4)

        def error(a, b, w=w, c=c):
            rest = w - a.double() @ b.double()
            return float((rest @ c @ rest.T).trace())

        assert error(own.A[expert], own.B[expert]) < error(svd.a, svd.b)


def old_layout(model, folder):
    """A Mixtral checkpoint as the Hub has them: a linear w1, w2, w3 an expert, under `block_sparse_moe`."""
    model.save_pretrained(folder)
    names = set(load_file(folder / "model.safetensors"))
    assert "model.layers.0.block_sparse_moe.experts.3.w2.weight" in names, "as transformers writes it by itself"
    assert not any("gate_up_proj" in name for name in names)


@torch.no_grad()
def test_mixtral_in_the_hubs_old_layout_loads_compresses_and_round_trips(tmp_path):
    dense = tiny("mixtral")
    old_layout(dense, tmp_path / "hub")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hub", attn_implementation="eager")
    ids = batch_for(model).ids
    torch.testing.assert_close(model(ids).logits, dense(ids).logits)
    name = EXPERT_FAMILIES["mixtral"]
    ranks = {f"{name}.gate_up_proj": 8, f"{name}.down_proj": 8, "model.layers.0.self_attn.q_proj": 5}
    model = student_of(model, ranks).settle()
    save_checkpoint(model, byte_tokenizer(), tmp_path / "low", plan={"ranks": ranks}, card="#", max_shard_size="20KB")
    loaded = load_checkpoint(tmp_path / "low", attn_implementation="eager")
    assert isinstance(loaded.get_submodule(name), LowRankExperts)
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    loaded.save_pretrained(tmp_path / "again")
    again = load_checkpoint(tmp_path / "again", attn_implementation="eager")
    assert torch.equal(again(ids).logits, model(ids).logits)
    loaded.dequantize().save_pretrained(tmp_path / "dense")
    merged = load_file(tmp_path / "dense" / "model.safetensors")
    assert merged.keys() == load_file(tmp_path / "hub" / "model.safetensors").keys(), "the old layout again"


def test_a_damaged_expert_factor_is_named(tmp_path):
    model, names = compressed("mixtral", gate_up_proj=8)
    save_checkpoint(model, byte_tokenizer(), tmp_path, plan={"ranks": names}, card="#")
    tensors = load_file(tmp_path / "model.safetensors")
    lost = f"{EXPERT_FAMILIES['mixtral']}.lowrank.gate_up_proj.B"
    (found,) = [name for name in tensors if name.endswith("lowrank.gate_up_proj.B")]
    del tensors[found]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=lost.replace(".", r"\.")):
        AutoModelForCausalLM.from_pretrained(tmp_path)


def test_experts_learn_from_their_own_tokens():
    """The gradients of an expert that no token of the batch is routed to are zero."""
    from tests.distill.test_joint import gradients

    model = tiny("mixtral")
    model.model.layers[1].mlp.gate.weight.data[3] = -100 * model.model.layers[1].mlp.gate.weight.data[:3].mean(0)
    tokens = random_tokens(1, 6)
    tokens = type(tokens)(tokens.ids % 60 + 4, tokens.lengths)
    name = EXPERT_FAMILIES["mixtral"]
    found, _ = gradients(model, StudentInputs.teacher, tokens, ranks={f"{name}.down_proj": 8})
    factor = found[1, "mlp.experts.lowrank.down_proj.A"]
    routes = []
    hook = model.get_submodule(name).register_forward_pre_hook(lambda _, args: routes.append(args[1]))
    (batch,) = tokens.batches(1, "cpu")
    with torch.no_grad():
        model(batch.ids)
    hook.remove()
    used = {int(route) for route in routes[0].flatten()}
    for expert in range(4):
        assert bool(factor[expert].abs().sum() > 0) == (expert in used)

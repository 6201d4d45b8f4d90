import numpy as np
import pytest
import torch

import lillama.init.feature
from lillama.config import FeatureConfig, KfacConfig, OutputMoment, RandomConfig, Split, SvdConfig
from lillama.data.tokens import TokenBlocks
from lillama.init import start_factors
from lillama.init.moments import input_moments, moment_groups
from lillama.model.student import Student
from lillama.model.surgery import matrix
from lillama.model.targets import model_shape
from tests.conftest import random_tokens

NAMES = ["model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.k_proj", "model.layers.2.mlp.down_proj"]
RANKS = dict.fromkeys(NAMES, 6)


def inputs_of(model, name, tokens):
    """What a linear really sees, by a plain forward pass of the whole model."""
    seen = []
    hook = model.get_submodule(name).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        for batch in tokens.batches(4, "cpu"):
            model(batch.ids, attention_mask=None if batch.mask is None else batch.mask.long())
            if batch.mask is not None:
                seen[-1] = seen[-1][batch.mask]
    hook.remove()
    return torch.cat([x.reshape(-1, x.shape[-1]) for x in seen]).double()


@pytest.mark.parametrize("lengths", [[32] * 8, [32, 5, 17, 32, 1, 9, 32, 30]], ids=["full", "padded"])
def test_moments_are_those_of_the_real_inputs(tiny_model, lengths):
    tokens = TokenBlocks(random_tokens().ids, np.array(lengths, np.int32))
    moments = input_moments(tiny_model, NAMES, tokens)
    for name in NAMES:
        x = inputs_of(tiny_model, name, tokens)
        assert moments[name].count == sum(lengths)
        torch.testing.assert_close(moments[name].value, x.T @ x / len(x), rtol=1e-4, atol=1e-6)


def test_linears_that_share_an_input_share_a_moment(tiny_model, tokens):
    names = [target.name for target in model_shape(tiny_model).targets if target.block == 1]
    moments = input_moments(tiny_model, names, tokens)
    groups = {}
    for name in names:
        groups.setdefault(id(moments[name]), set()).add(name.rpartition(".")[2])
    assert sorted(map(sorted, groups.values())) == [
        ["down_proj"],
        ["gate_proj", "up_proj"],
        ["k_proj", "q_proj", "v_proj"],
        ["o_proj"],
    ]


@torch.no_grad()
def output_error(model, modules, name, tokens):
    x = inputs_of(model, name, tokens)
    w = matrix(model, name).double()
    pair = modules[name]
    return float(
        (x @ (w - pair.A.weight.double() @ pair.B.weight.double()).T).square().sum() / (x @ w.T).square().sum()
    )


def test_feature_has_the_least_output_error_then_svd_then_random(tiny_model, tokens):
    starts = {
        "feature": FeatureConfig(),
        "svd": SvdConfig(),
        "random": RandomConfig(),
    }
    for name in NAMES:
        errors = {
            option: output_error(tiny_model, start_factors(tiny_model, RANKS, tokens, config), name, tokens)
            for option, config in starts.items()
        }
        assert errors["feature"] < errors["svd"] < errors["random"], name


@pytest.mark.parametrize(
    "config",
    [
        SvdConfig(),
        SvdConfig(split=Split.symmetric),
        FeatureConfig(),
        FeatureConfig(tokens=1),
        KfacConfig(),
        KfacConfig(tokens=1, output=OutputMoment.diagonal),
    ],
)
def test_full_rank_starts_reproduce_the_dense_logits_without_a_step(tiny_model, tokens, config):
    ids = torch.from_numpy(tokens.ids[:2].astype(np.int64))
    ranks = {target.name: min(target.shape) for target in model_shape(tiny_model).targets}
    with torch.no_grad():
        dense = tiny_model(ids).logits
        student = Student(tiny_model, start_factors(tiny_model, ranks, tokens, config))
        with student.in_place() as compressed:
            torch.testing.assert_close(compressed(ids).logits, dense, atol=2e-3, rtol=1e-3)


def test_fewer_tokens_than_dimensions_are_told_and_never_fail(tiny_model, caplog):
    caplog.set_level("INFO")
    modules = start_factors(tiny_model, RANKS, random_tokens(1, 4), FeatureConfig())
    assert all(bool(p.isfinite().all()) for pair in modules.values() for p in pair.parameters())
    assert "the data says nothing of" in caplog.text


def test_a_start_in_several_passes_is_the_start_in_one(tiny_model, tokens, monkeypatch):
    names = [target.name for target in model_shape(tiny_model).targets]
    ranks = dict.fromkeys(names, 6)
    whole = start_factors(tiny_model, ranks, tokens, FeatureConfig())
    largest = 8 * 128**2
    groups = moment_groups(tiny_model, names, limit=2 * largest)
    assert [name for group in groups for name in group] == names
    assert len(groups) > 2
    monkeypatch.setattr(lillama.init.feature, "moment_groups", lambda model, names: groups)
    parts = start_factors(tiny_model, ranks, tokens, FeatureConfig())
    assert list(parts) == names
    assert all(torch.equal(whole[name].A.weight, parts[name].A.weight) for name in names)


def test_feature_uses_no_more_tokens_than_it_is_told(tiny_model, tokens):
    def factors(data, limit):
        return start_factors(tiny_model, RANKS, data, FeatureConfig(tokens=limit))[NAMES[0]].A.weight

    assert torch.equal(factors(tokens, 64), factors(tokens.head(64), 10**6))
    assert not torch.equal(factors(tokens, 64), factors(tokens, 10**6))


def test_random_is_seeded_by_matrix(tiny_model):
    first = start_factors(tiny_model, RANKS, None, RandomConfig())
    fewer = start_factors(tiny_model, {NAMES[2]: 6}, None, RandomConfig())
    assert torch.equal(first[NAMES[2]].A.weight, fewer[NAMES[2]].A.weight), "the same in every plan"
    other = start_factors(tiny_model, RANKS, None, RandomConfig(seed=1))
    assert not torch.equal(first[NAMES[2]].A.weight, other[NAMES[2]].A.weight)

"""The output energies that a plan goes by: those of the real outputs, and made once for plan and start."""

import pytest
import torch

import lillama.init.feature
from lillama.config import FeatureConfig
from lillama.core.cache import Cache
from lillama.data.tokens import TokenBlocks
from lillama.init import FactorCache, start_factors
from lillama.init.energy import output_energies
from lillama.model.surgery import matrix
from tests.conftest import random_tokens
from tests.families import tiny
from tests.init.test_starts import NAMES, inputs_of

FLOOR = 1e-7
GATE = "model.layers.1.mlp.experts.gate_up_proj"


def few(tokens):
    """A batch whose ids every tiny family knows."""
    return TokenBlocks(tokens.ids % 60 + 4, tokens.lengths)


def test_they_are_the_eigenvalues_of_the_real_outputs(tiny_model, tokens):
    names = [*NAMES, "model.layers.1.mlp.gate_proj"]  # wide and tall
    found = output_energies(tiny_model, names, tokens, floor=FLOOR)
    assert list(found) == names
    for name in names:
        x = inputs_of(tiny_model, name, tokens)
        y = x @ matrix(tiny_model, name).double().T
        values = torch.linalg.eigvalsh(y.T @ y / len(y)).flip(0)[: min(matrix(tiny_model, name).shape)]
        assert len(found[name]) == len(values)
        assert found[name] == sorted(found[name], reverse=True)
        torch.testing.assert_close(torch.tensor(found[name]), values.float(), rtol=1e-3, atol=float(values[0]) * 1e-4)


@pytest.mark.parametrize("rank", [1, 6, 12])
def test_what_a_plan_loses_is_the_error_that_the_start_makes(tiny_model, tokens, rank):
    energies = output_energies(tiny_model, NAMES, tokens, floor=FLOOR)
    modules = start_factors(tiny_model, dict.fromkeys(NAMES, rank), tokens, FeatureConfig(floor=FLOOR))
    for name in NAMES:
        x, pair = inputs_of(tiny_model, name, tokens), modules[name]
        product = pair.A.weight.detach().double() @ pair.B.weight.detach().double()
        error = (x @ (matrix(tiny_model, name).double() - product).T).square().sum(1).mean()
        assert sum(energies[name][rank:]) == pytest.approx(float(error), rel=1e-2)


@pytest.mark.parametrize(("family", "name"), [("gpt2", "transformer.wte"), ("llama", "model.embed_tokens")])
def test_an_embedding_has_those_of_the_vectors_that_it_gives(family, name, tokens):
    model, tokens, rank = tiny(family), few(tokens), 9  # tied and not
    (values,) = output_energies(model, [name], tokens, floor=FLOOR).values()
    pair = start_factors(model, {name: rank}, tokens, FeatureConfig(floor=FLOOR))[name]
    table = matrix(model, name).double()
    product = pair.A.weight.detach().double() @ pair.B.weight.detach().double()
    ids = torch.from_numpy(tokens.ids).long().flatten()
    error = (table - product)[ids].square().sum(1).mean()
    assert len(values) == min(table.shape)
    assert sum(values[rank:]) == pytest.approx(float(error), rel=1e-2)


def test_experts_share_a_spectrum_and_those_that_no_token_reached_have_no_say(tokens):
    model, names = tiny("mixtral"), [GATE]
    with_all = output_energies(model, names, few(tokens), floor=FLOOR)[GATE]
    one_token = TokenBlocks(few(tokens).ids[:1, :1], tokens.lengths[:1] * 0 + 1)
    reached = output_energies(model, names, one_token, floor=FLOOR)[GATE]
    assert len(with_all) == len(reached) == min(matrix(model, GATE).shape[-2:])
    assert with_all == sorted(with_all, reverse=True)
    # A token reaches two of the four experts, and each gives one vector: an energy in one direction only.
    assert sum(reached[1:]) < 1e-4 * reached[0]


@pytest.mark.parametrize("plan_first", [True, False])
def test_a_plan_and_a_start_share_their_spectra(tiny_model, tokens, tmp_path, monkeypatch, plan_first):
    cache, config = Cache(tmp_path), FeatureConfig(tokens=64)
    ranks, seen = dict.fromkeys(NAMES, 6), tokens.head(config.tokens)

    def plan(known):
        return output_energies(tiny_model, NAMES, seen, floor=config.floor, cache=FactorCache(known, "a model"))

    def start(known):
        modules = start_factors(tiny_model, ranks, tokens, config, cache=FactorCache(known, "a model"))
        return [modules[name].A.weight.tolist() for name in NAMES]

    wanted = [plan(Cache(tmp_path / "apart")), start(Cache(tmp_path / "apart too"))]
    one, other = (plan, start) if plan_first else (start, plan)
    one(cache)
    monkeypatch.setattr(lillama.init.feature, "input_moments", lambda *_, **__: pytest.fail("made again"))
    assert other(Cache(tmp_path)) == wanted[plan_first]
    assert plan(Cache(tmp_path)) == wanted[0], "the same bits from the cache"


def test_fewer_tokens_than_dimensions_give_as_many_values_none_below_zero(tiny_model):
    found = output_energies(tiny_model, NAMES, random_tokens(1, 4), floor=FLOOR)
    for name, values in found.items():
        assert len(values) == min(matrix(tiny_model, name).shape)
        assert min(values) >= 0
        assert sum(values[4:]) < 1e-3 * values[0]

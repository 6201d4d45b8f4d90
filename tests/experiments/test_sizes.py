"""Plans of the paper's models have its sizes; those of its experiments meet what they ask for."""

import pytest

from lillama.config import ModelConfig, Stage, Weights
from lillama.config.compose import experiment_sweep
from lillama.strategy import make_plan
from tests.conftest import composed
from tests.marks import long_unless

PUBLISHED = {  # what the paper prints of the model and of the compressed one, in billions (Tables 3, 13, 16, 18)
    "mixtral_8x7b": (["strategy=bottom"], 47, 37),
    "mixtral_8x7b experts only": (["strategy=bottom", "model.targets.include=[experts.*]"], 47, 37),
    "mamba_2_8b": (["strategy=bottom"], 2.77, 2.22),
    "falcon_mamba_7b": (["strategy=bottom"], 7.27, 5.82),
    "whisper_medium_en": (
        ["strategy=uniform", "strategy.scope=decoder", "strategy.reduction=0.7", "strategy.fraction_of=rank"],
        0.764,
        0.485,
    ),
    "inkubalm": (["strategy=rank", "strategy.rank=1024"], 0.422, 0.299),
    "phi2": (["strategy=bottom"], 2.8, 2.2),
    "mistral_7b": (["strategy=bottom"], 7.2, 5.8),
    "phi3_medium_14b": (["strategy=bottom", "strategy.k=1536"], 14, 11),
}


@pytest.mark.parametrize("case", long_unless(lambda case: "mamba" not in case and "phi" not in case, PUBLISHED))
def test_sizes_are_those_that_the_paper_prints(case, model_shapes):
    """To the digits that are printed, but for what is named."""
    words, dense, compressed = PUBLISHED[case]
    config = composed(f"model={case.partition(' ')[0]}", *words)
    plan = make_plan(model_shapes(config.model), config.strategy)
    for printed, counted in ((dense, plan.dense_parameters), (compressed, plan.parameters)):
        digits = len(str(printed).partition(".")[2])
        assert OTHERWISE.get((case, printed), round(counted / 1e9, digits)) in (printed, round(counted / 1e9, 4))


# What comes out otherwise than printed: Algorithm 1 with k=1024, m=256 ends 5M below Mamba's figure, and InkubaLM's is
# cut off, not rounded.
OTHERWISE = {("mamba_2_8b", 2.22): 2.2146, ("inkubalm", 0.299): 0.2996}


def test_the_published_choice_for_mixtral_is_its_experts_only(model_shapes):
    """The paper's text means all matrices; the router is dense in both.

    The published layer 9 has rank 1536. Here w1 and w3 are one fused matrix with one B, so the same budget is met at
    another rank.
    """
    config = composed("model=mixtral_8x7b", "strategy=bottom", "model.targets.include=[experts.*]")
    published = make_plan(model_shapes(config.model), config.strategy)
    assert all(".experts." in name for name in published.ranks)
    assert published.blocks == tuple(range(10)), "layers 0 to 9, as published"
    assert {rank for name, rank in published.ranks.items() if "layers.9." not in name} == {1024}
    assert {rank for name, rank in published.ranks.items() if "layers.9." in name} == {2304}
    text = make_plan(model_shapes(composed("model=mixtral_8x7b").model), config.strategy)
    assert "model.layers.0.self_attn.q_proj" in text.ranks
    assert not [name for name in text.ranks if ".gate" in name and ".gate_up" not in name]


@pytest.mark.parametrize(
    "name", long_unless("table11_ratios".__eq__, ["table02_zero_shot", "table06_mamba", "table11_ratios"])
)
def test_plans_at_the_papers_scale_meet_what_is_asked(name, model_shapes):
    for cell in experiment_sweep(f"paper/{name}").cells:
        config = composed(f"experiments=paper/{name}", *cell)
        plan = make_plan(model_shapes(config.model), config.strategy)
        asked = config.strategy.reduction
        assert Stage.distill in config.stages
        assert asked <= plan.realised < asked + 0.01, cell


SMOLLM2 = {  # the file of the model itself is read by the tests of the real one
    "model_type": "llama",
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "tie_word_embeddings": True,
}


@pytest.mark.parametrize("name", ["figure4_ranks", "table10_strategies", "table11_ratios"])
def test_plans_at_the_small_scale_meet_what_is_asked(name, model_shapes):
    shape = model_shapes(ModelConfig(name="smollm2", weights=Weights.random, architecture=SMOLLM2))
    assert shape.parameters == 134_515_008
    for cell in experiment_sweep(f"small/{name}").cells:
        config = composed(f"experiments=small/{name}", *cell)
        assert config.model.name == "smollm2_135m"
        plan = make_plan(shape, config.strategy)
        assert config.strategy.reduction <= plan.realised < config.strategy.reduction + 0.01, cell


@pytest.mark.parametrize(
    ("words", "size"),
    [
        (("experiments=paper/table04_small_models", "model=phi2"), 1.727e9),
        (("experiments=paper/table18_hausa", "model=inkubalm"), 0.2996e9),
        (("experiments=paper/table02_zero_shot", "model=phi2"), 2.22e9),
        (("experiments=paper/table02_zero_shot", "model=mixtral_8x7b"), 37.3e9),
    ],
)
def test_models_come_out_at_the_papers_sizes(words, size, model_shapes):
    config = composed(*words)
    plan = make_plan(model_shapes(config.model), config.strategy)
    assert plan.parameters == pytest.approx(size, rel=0.002)

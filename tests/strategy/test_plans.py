"""All strategies: budgets, the paper's sizes, what is out of reach."""

import json
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lillama.config import (
    BottomConfig,
    FactorForm,
    MiddleOutConfig,
    MixedConfig,
    PlanFileConfig,
    RankConfig,
    Rounding,
    TopConfig,
    UniformConfig,
)
from lillama.core.errors import ConfigError
from lillama.model.source import ModelSource
from lillama.model.targets import ModelShape, Target, model_shape
from lillama.strategy import make_plan, parse_count
from lillama.strategy.plan import RankPlan
from tests.conftest import composed


@cache
def shape_of(option):
    return model_shape(ModelSource(composed(f"model={option}").model, Path()).meta)


@st.composite
def models(draw):
    """A model of a few blocks with matrices of any shape, experts among them, and untouched parameters beside."""
    sizes = draw(st.lists(st.tuples(st.integers(8, 90), st.integers(8, 90), st.integers(1, 3)), min_size=1, max_size=5))
    blocks = draw(st.integers(1, 5))
    targets = [
        Target(f"layers.{block}.w{index}", block, (out, inner), copies)
        for block in range(blocks)
        for index, (out, inner, copies) in enumerate(sizes)
    ]
    extra = draw(st.integers(0, 5000))
    shape = ModelShape(sum(t.parameters for t in targets) + extra, blocks, tuple(targets))
    return shape.factored(draw(st.sampled_from(FactorForm)))


def of_factors(t, rank):
    """Parameters of one copy's factors, counted afresh."""
    return rank * (t.shape[0] + t.shape[1] - (rank if t.form is FactorForm.pivoted else 0))


def candidates(t, *, k, m):
    """The ranks of Algorithm 1 that save, found one by one."""
    return [r for r in range(k, min(t.shape) + 1, m) if of_factors(t, r) < t.shape[0] * t.shape[1]]


def realised(shape, ranks):
    """Parameters of a plan, counted afresh."""
    freed = sum(
        t.copies * (t.shape[0] * t.shape[1] - of_factors(t, ranks[t.name])) for t in shape.targets if t.name in ranks
    )
    return shape.parameters - freed


@pytest.mark.parametrize(
    ("option", "k", "sizes"),
    [
        ("phi2", 1024, (2_222_627_840, 18, 106)),
        ("mistral_7b", 1024, (5_793_124_352, 11, 55)),
        ("phi3_medium_14b", 1536, (11_166_438_400, 14, 55)),
    ],
)
def test_the_papers_sizes_follow_from_configuration_alone(option, k, sizes):
    parameters, blocks, matrices = sizes
    plan = make_plan(shape_of(option), BottomConfig(k=k, m=256, reduction=0.2))
    assert plan.parameters == parameters
    assert plan.blocks == tuple(range(blocks))
    assert len(plan.ranks) == matrices


def test_a_plan_of_the_ends_replays_without_naming_them_again(tmp_path):
    config = composed("model=inkubalm", "strategy=rank")
    meta = ModelSource(config.model, tmp_path).meta
    plan = make_plan(model_shape(meta, config.model.targets), config.strategy)
    file = tmp_path / "plan.json"
    file.write_text(json.dumps(plan.as_dict()))
    assert make_plan(model_shape(meta), PlanFileConfig(file=str(file))) == plan


def test_one_rank_for_every_matrix_that_it_makes_smaller():
    plan = make_plan(shape_of("mistral_7b"), RankConfig(rank=900))
    assert set(plan.ranks.values()) == {900}
    assert not [name for name in plan.ranks if name.endswith("k_proj")], "900 saves nothing in 1024 x 4096"
    assert plan.requested == plan.realised
    with pytest.raises(ConfigError, match=r"strategy\.rank=5000"):
        make_plan(shape_of("mistral_7b"), RankConfig(rank=5000))


@pytest.mark.parametrize(
    ("option", "k", "largest"), [("phi2", 1024, "36.2%"), ("phi2", 1536, "15.1%"), ("mistral_7b", 2048, "27.8%")]
)
def test_a_request_out_of_reach_names_the_largest_reduction(option, k, largest):
    with pytest.raises(ConfigError, match=f"largest possible is {largest}"):
        make_plan(shape_of(option), BottomConfig(k=k, m=256, reduction=0.4))


@pytest.mark.parametrize("config", [BottomConfig(parameters="500M"), UniformConfig(parameters="100M")])
def test_a_size_out_of_reach_is_named_as_it_was_asked_for(config):
    shape = shape_of("phi2")
    with pytest.raises(
        ConfigError, match=rf"strategy\.parameters={config.parameters}: out of reach.*smallest possible is"
    ):
        make_plan(shape, config)


def test_the_authors_uniform_formula_removes_what_they_publish():
    """Phi-2 at 20% asked: 18.1% got."""
    plan = make_plan(shape_of("phi2"), UniformConfig(reduction=0.2, fraction_of=Rounding.rank))
    assert round(100 * plan.realised, 1) == 18.1


def test_a_47b_model_is_planned_with_its_fused_experts():
    shape = shape_of("mixtral_8x7b")
    plan = make_plan(shape, BottomConfig(k=1024, m=256, reduction=0.2))
    assert shape.parameters == 46_702_792_704
    assert plan.parameters <= 0.8 * shape.parameters
    assert plan.parameters == realised(shape, plan.ranks)


def outward(blocks):
    """From the middle, the lower of two first."""
    low, high = (blocks - 1) // 2, blocks // 2
    order = []
    while low >= 0:
        order += [low] if low == high else [low, high]
        low, high = low - 1, high + 1
    return order


def inward(blocks):
    """From both ends in turn, the bottom first."""
    left, order = list(range(blocks)), []
    while left:
        order.append(left.pop(-1 if len(order) % 2 else 0))
    return order


ORDERS = {
    BottomConfig: lambda blocks: list(range(blocks)),
    TopConfig: lambda blocks: list(range(blocks))[::-1],
    MiddleOutConfig: outward,
    MixedConfig: inward,
}


@given(models(), st.integers(1, 12), st.integers(1, 9), st.floats(0.01, 0.6), st.sampled_from(list(ORDERS)))
@settings(deadline=None, max_examples=300)
def test_algorithm_1(shape, k, m, reduction, schema):
    config = schema(k=k, m=m, reduction=reduction)
    target = int(shape.parameters * (1 - reduction))
    try:
        plan = make_plan(shape, config)
    except ConfigError as error:
        lowest = {t.name: c[0] for t in shape.targets if (c := candidates(t, k=k, m=m))}
        assert not lowest or realised(shape, lowest) > target, str(error)
        return
    assert plan.parameters == realised(shape, plan.ranks) <= target
    matrices = {t.name: t for t in shape.targets}
    ends = ORDERS[schema](shape.blocks)
    order = sorted(plan.blocks, key=ends.index)
    with_candidates = [b for b in ends if any(candidates(t, k=k, m=m) for t in shape.targets if t.block == b)]
    assert order == with_candidates[: len(order)], "layers are taken in order, none is skipped"
    for name, rank in plan.ranks.items():
        assert rank in candidates(matrices[name], k=k, m=m)
    for block in order[:-1]:  # every block but the last is cut to the smallest candidate ranks
        for t in shape.targets:
            if t.block == block and candidates(t, k=k, m=m):
                assert plan.ranks[t.name] == k
    assert _one_step_less(shape, plan.ranks, k=k, m=m, last=order[-1]) > target, "it stops as soon as it may"


@pytest.mark.parametrize(
    ("option", "blocks"),
    [("middle_out", (14, 15, 16, 17)), ("mixed", (0, 1, 30, 31)), ("top", (28, 29, 30, 31)), ("bottom", (0, 1, 2, 3))],
)
def test_the_order_of_layers_on_the_command_line(option, blocks):
    config = composed("model=mistral_7b", f"strategy={option}", "strategy.k=512", "strategy.reduction=0.08")
    assert make_plan(shape_of("mistral_7b"), config.strategy).blocks == blocks


def _one_step_less(shape, ranks, *, k, m, last):
    """The size before the last replacement: undo the lowest rank, latest in module order, of the last block."""
    inside = [t for t in shape.targets if t.block == last and t.name in ranks]
    lowest = min(ranks[t.name] for t in inside)
    latest = [t for t in inside if ranks[t.name] == lowest][-1]
    higher = [r for r in candidates(latest, k=k, m=m) if r > lowest]
    before = dict(ranks)
    if higher:
        before[latest.name] = higher[0]
    else:
        del before[latest.name]
    return realised(shape, before)


@given(models(), st.floats(0.01, 0.7), st.sampled_from([1, 2, 8]), st.integers(1, 20))
@settings(deadline=None, max_examples=200)
def test_uniform_meets_the_budget_of_the_whole_model(shape, reduction, step, k):
    target = int(shape.parameters * (1 - reduction))
    lowest = -(-k // step) * step
    large = [t for t in shape.targets if candidates(t, k=lowest, m=1)]
    smallest = realised(shape, {t.name: lowest for t in large})
    if smallest > target:
        with pytest.raises(ConfigError, match=f"largest possible is {1 - smallest / shape.parameters:.1%}"):
            make_plan(shape, UniformConfig(reduction=reduction, round_to=step, k=k))
        return
    plan = make_plan(shape, UniformConfig(reduction=reduction, round_to=step, k=k))
    assert plan.parameters == realised(shape, plan.ranks) <= target
    assert set(plan.ranks) == {t.name for t in large}
    for t in large:
        assert of_factors(t, plan.ranks[t.name]) < t.shape[0] * t.shape[1]
        assert plan.ranks[t.name] % step == 0
        assert plan.ranks[t.name] >= k
    # One share fits all that are above the lowest rank, to within a step of rank; a step that was left over may
    # have gone to one that stood at the lowest.
    above = [(t, plan.ranks[t.name]) for t in large if plan.ranks[t.name] > lowest + step]
    if above:
        least, most = (
            pick(of_factors(t, r + by) / (t.shape[0] * t.shape[1]) for t, r in above)
            for pick, by in ((max, -step), (min, step))
        )
        assert least <= most + 1e-9
    # What is left over is too little for another step of all; a matrix at its largest rank cannot take its own.
    gap = target - plan.parameters
    dearest = max(t.copies * of_factors(t, step) for t in large)
    full = [t for t in large if not candidates(t, k=plan.ranks[t.name] + step, m=1)]
    assert gap < dearest or full


def test_a_lowest_rank_makes_the_larger_matrices_give_more():
    shape = shape_of("mistral_7b")
    plain, raised = (make_plan(shape, UniformConfig(k=k)) for k in (1, 700))
    name = "model.layers.0.self_attn.k_proj"
    assert plain.ranks[name] < raised.ranks[name] == 700
    gate = "model.layers.0.mlp.gate_proj"
    assert raised.ranks[gate] < plain.ranks[gate]
    assert abs(raised.parameters - plain.parameters) < 1e-4 * plain.parameters


def test_a_target_may_be_a_parameter_count():
    shape = shape_of("phi2")
    plan = make_plan(shape, UniformConfig(parameters="1.7B"))
    assert 1_699_000_000 < plan.parameters <= 1_700_000_000
    assert plan.requested == pytest.approx(1 - 1.7e9 / shape.parameters)


@pytest.mark.parametrize(
    ("text", "count"), [("1.7B", 1_700_000_000), ("350M", 350_000_000), ("12k", 12_000), ("110_000", 110_000)]
)
def test_counts_are_read_as_people_write_them(text, count):
    assert parse_count(text) == count


@pytest.mark.parametrize("text", ["", "B", "small", "nan", "infM"])
def test_other_counts_are_refused(text):
    with pytest.raises(ConfigError, match=r"strategy\.parameters"):
        parse_count(text)


def test_a_count_above_the_model_is_refused():
    with pytest.raises(ConfigError, match="2,779,683,840"):
        make_plan(shape_of("phi2"), UniformConfig(parameters="3B"))


def test_a_k_above_every_matrix_is_refused():
    with pytest.raises(ConfigError, match=r"strategy\.k=3000.*largest matrix has rank 2560"):
        make_plan(shape_of("phi2"), BottomConfig(k=3000))


def test_a_saved_plan_replays(tmp_path):
    shape = shape_of("phi2")
    plan = make_plan(shape, BottomConfig())
    file = tmp_path / "plan.json"
    file.write_text(json.dumps(plan.as_dict()))
    replayed = make_plan(shape, PlanFileConfig(file=str(file)))
    assert replayed.ranks == plan.ranks
    assert replayed.parameters == plan.parameters
    assert replayed.requested == replayed.realised == plan.realised


def test_pivoted_factors_keep_higher_ranks_for_the_same_parameters():
    """A quarter off a square matrix of 576: rank 216 plain, 288 pivoted."""
    shape = ModelShape(576**2, 1, (Target("w", 0, (576, 576)),))
    plain, pivoted = (make_plan(shape.factored(form), UniformConfig(reduction=0.25)) for form in FactorForm)
    assert (plain.ranks, pivoted.ranks) == ({"w": 216}, {"w": 288})
    assert plain.parameters == pivoted.parameters == 576**2 * 3 // 4
    assert (plain.indices, pivoted.indices) == (0, 576)


@pytest.mark.parametrize("form", FactorForm)
def test_a_plan_says_how_its_factors_are_stored_and_replays_only_so(form, tmp_path):
    shape = shape_of("mixtral_8x7b").factored(form)
    plan = make_plan(shape, UniformConfig())
    told = plan.as_dict()
    assert told["factors"] == form.name
    inner = sum(t.copies * t.shape[1] for t in shape.targets) if form is FactorForm.pivoted else 0
    assert told["indices"] == {"count": inner, "bytes": 4 * inner}
    assert RankPlan.from_dict(told) == plan
    file = tmp_path / "plan.json"
    file.write_text(json.dumps(told))
    assert make_plan(shape, PlanFileConfig(file=str(file))).ranks == plan.ranks
    other = next(own for own in FactorForm if own is not form)
    with pytest.raises(ConfigError, match=f"is a plan of factors={form.name}, not {other.name}"):
        make_plan(shape.factored(other), PlanFileConfig(file=str(file)))


def test_an_older_plan_is_one_of_plain_factors(tmp_path):
    told = make_plan(shape_of("phi2"), BottomConfig()).as_dict()
    older = {key: value for key, value in told.items() if key not in ("factors", "indices")}
    assert RankPlan.from_dict(older).factors is FactorForm.plain
    file = tmp_path / "plan.json"
    file.write_text(json.dumps(older))
    assert make_plan(shape_of("phi2"), PlanFileConfig(file=str(file))).ranks == told["ranks"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "not a readable plan"),
        ('{"ranks": {}}', "replaces no matrix"),
        ("no json", "not a readable plan"),
        ('{"ranks": {"model.layers.0.nowhere": 3}}', "no matrix of this model"),
        ('{"ranks": {"model.layers.0.self_attn.q_proj": 2560}}', "saves no parameters"),
        ('{"ranks": {"model.layers.0.self_attn.q_proj": 0}}', "saves no parameters"),
    ],
)
def test_a_wrong_plan_file_is_refused(content, message, tmp_path):
    file = tmp_path / "plan.json"
    file.write_text(content)
    with pytest.raises(ConfigError, match=message):
        make_plan(shape_of("phi2"), PlanFileConfig(file=str(file)))

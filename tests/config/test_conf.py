"""Every shipped YAML composes and validates; the presets say what they promise."""

import json

import pytest
from omegaconf import OmegaConf

from lillama.config import (
    BlockwiseConfig,
    BottomConfig,
    Distance,
    FactorForm,
    FeatureConfig,
    KfacConfig,
    KfacRanksConfig,
    LearningRate,
    Objective,
    Packing,
    Reduction,
    Source,
    Split,
    Stage,
    StudentInputs,
    SvdConfig,
    Train,
    Tune,
    UniformConfig,
)
from lillama.config.schemas import plain
from lillama.core.errors import ConfigError
from tests.conftest import ROOT, composed

GROUPS = (
    *("model", "strategy", "factors", "loss", "init", "data", "distill", "distill/schedule"),
    *("finetune", "finetune/data", "logger", "bench", "preset", "scale", "evaluate", "evaluate/perplexity"),
    *(f"evaluate/{stage}" for stage in ("zero_shot", "throughput", "samples", "wer", "stable_rank", "domains")),
)
OPTIONS = [(group, path.stem) for group in GROUPS for path in sorted((ROOT / "conf" / group).glob("*.yaml"))]
# What an option cannot know by itself.
NEEDS = {
    ("model", "hub"): ["model.path=org/name"],
    ("strategy", "plan"): ["strategy.file=plan.json"],
    ("data", "local"): ["data.path=file.jsonl"],
    ("data", "speech"): ["data.path=folder"],
    ("finetune/data", "local"): ["finetune.data.path=file.jsonl"],
    ("finetune/data", "speech"): ["finetune.data.path=folder"],
    ("evaluate/perplexity", "local"): ["evaluate.perplexity.path=file.jsonl"],
}


@pytest.mark.parametrize(("group", "option"), OPTIONS, ids="/".join)
def test_every_option_composes_and_validates(group, option, monkeypatch):
    monkeypatch.setenv("LILLAMA_DATA", "somewhere")
    composed(f"{group}={option}", *NEEDS.get((group, option), []))


@pytest.mark.parametrize(("group", "option"), OPTIONS, ids="/".join)
def test_every_option_says_what_it_is(group, option):
    lines = (ROOT / "conf" / group / f"{option}.yaml").read_text().splitlines()
    comments = [line for line in lines[:2] if line.startswith("# ") and "@package" not in line]
    assert comments, "the first comment is the option's documentation"


def test_the_default_is_the_recommended_recipe_offline():
    """A start and ranks by curvature, pivoted factors and the dense model's logits; nothing comes from the Hub."""
    config = composed()
    assert config == composed("preset=recommended")
    assert isinstance(config.strategy, KfacRanksConfig)
    assert isinstance(config.init, KfacConfig)
    assert config.factors.form is FactorForm.pivoted
    assert config.finetune.objective is Objective.kl
    assert config.stages == [Stage.plan, Stage.init, Stage.finetune, Stage.perplexity]
    assert {part.source for part in config.data.parts.values()} <= {Source.stdlib_docs, Source.local}
    assert config.data.parts["docs"].split == "train"
    assert config.evaluate.perplexity.source is Source.stdlib_docs
    assert config.evaluate.perplexity.split == "heldout"


def test_the_recipe_before_the_two_sided_start_is_a_preset():
    config = composed("preset=local")
    assert isinstance(config.strategy, UniformConfig)
    assert isinstance(config.init, FeatureConfig)
    assert config.stages == [Stage.plan, Stage.init, Stage.distill, Stage.perplexity]


@pytest.mark.parametrize("words", [("distill=paper",), ("preset=paper", "model=phi2"), ()])
def test_every_recipe_learns_block_by_block_when_asked(words):
    config = composed(*words, "distill/schedule=blockwise", "distill.schedule.heldout=0.1")
    assert isinstance(config.distill.schedule, BlockwiseConfig)
    assert config.distill.schedule.heldout == 0.1
    assert config.distill.lr_schedule is composed(*words).distill.lr_schedule


def test_early_stopping_needs_held_out_text():
    with pytest.raises(ConfigError, match="patience"):
        composed("distill/schedule=blockwise", "distill.schedule.patience=2")
    with pytest.raises(ConfigError, match=r"distill\.keep=lowest_batch"):
        composed("distill/schedule=blockwise", "distill.schedule.heldout=0.1", "distill.keep=lowest_batch")


@pytest.mark.parametrize("strategy", ["uniform", "spectrum", "bottom", "top", "middle_out", "mixed"])
def test_the_smallest_rank_is_a_key_of_every_strategy(strategy):
    """So that one sweep over k fits all of them."""
    assert composed(f"strategy={strategy}", "strategy.k=96").strategy.k == 96


def test_one_seed_is_enough():
    config = composed("seed=7", "init=random")
    assert (config.seed, config.data.seed, config.init.seed) == (7, 7, 7)


def test_the_papers_preset_is_the_papers_text():
    config = composed("preset=paper", "model=phi2")
    assert isinstance(config.strategy, BottomConfig)
    assert (config.strategy.k, config.strategy.m, config.strategy.reduction) == (1024, 256, 0.2)
    assert isinstance(config.init, SvdConfig)
    assert config.init.split is Split.us_v
    assert config.factors.form is composed("preset=authors_code", "model=phi2").factors.form is FactorForm.plain
    assert config.loss.inputs is StudentInputs.teacher_student
    assert config.loss.distance is Distance.l1_cosine
    assert config.loss.reduction is Reduction.sum
    assert (config.distill.lr, config.distill.lr_schedule) == (8.6e-4, LearningRate.constant)
    assert config.distill.train is Train.factors
    assert (config.data.tokens, config.data.seq_len) == (13_000_000, 2048)
    assert config.data.packing is Packing.padded
    assert config.data.path == "Open-Orca/SlimOrca"


def test_full_fine_tuning_is_the_papers():
    """Table 5: every parameter, 2e-5 with cosine, once over the whole text, which is not the calibration's."""
    config = composed("finetune=full", "finetune/data=slimorca", "data.tokens=1000", "finetune.data.tokens=null")
    settings = config.finetune
    assert (settings.train, settings.lr, settings.lr_schedule) == (Tune.all, 2e-5, LearningRate.cosine)
    assert (settings.epochs, settings.data.tokens) == (1, None)
    assert settings.data.path == "Open-Orca/SlimOrca" != config.data.path
    assert composed("finetune=lora", "finetune/data=wikitext2").finetune.train is Tune.lora


def test_every_text_is_there_for_calibration_and_for_fine_tuning():
    names = [{path.name for path in (ROOT / "conf" / group).glob("*.yaml")} for group in ("data", "finetune/data")]
    assert names[0] == names[1] - {"calibration.yaml"}, "the calibration's own text is fine-tuning's alone"


def test_the_command_line_wins_over_a_preset():
    config = composed("preset=paper", "strategy=uniform", "init=feature", "distill.lr=1e-3", "data=stdlib_docs")
    assert isinstance(config.strategy, UniformConfig)
    assert isinstance(config.init, FeatureConfig)
    assert config.distill.lr == 1e-3
    assert config.data.source is Source.stdlib_docs


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("strategy.reduction=1.0", "strategy.reduction"),
        ("strategy.reduction=0", "strategy.reduction"),
        ("strategy.reduction=-0.1", "strategy.reduction"),
        ("strategy.round_to=0", "strategy.round_to"),
        ("strategy=spectrum strategy.floor=0", "strategy.floor"),
        ("strategy=spectrum strategy.tokens=0", "strategy.tokens"),
        ("data.tokens=0", "data.tokens"),
        ("data.tokens=-5", "data.tokens"),
        ("data.tokens=99999999999999", "data.tokens"),
        ("data.seq_len=1", "data.seq_len"),
        ("init.tokens=0", "init.tokens"),
        ("distill.lr=0", "distill.lr"),
        ("distill.lr=inf", "distill.lr"),
        ("distill.lr=nan", "distill.lr"),
        ("distill.batch_size=0", "distill.batch_size"),
        ("distill.warmup=1", "distill.warmup"),
        ("distill.clip_norm=0", "distill.clip_norm"),
        ("distill.micro_batch=0", "distill.micro_batch"),
        ("finetune.lr=-1", "finetune.lr"),
        ("finetune.lr=nan", "finetune.lr"),
        ("finetune.epochs=0", "finetune.epochs"),
        ("finetune.batch_size=0", "finetune.batch_size"),
        ("finetune.micro_batch=0", "finetune.micro_batch"),
        ("finetune.warmup=1", "finetune.warmup"),
        ("finetune.weight_decay=-1", "finetune.weight_decay"),
        ("finetune.clip_norm=0", "finetune.clip_norm"),
        ("finetune.lora.rank=0", "finetune.lora.rank"),
        ("finetune.lora.alpha=0", "finetune.lora.alpha"),
        ("finetune.lora.dropout=1", "finetune.lora.dropout"),
        ("finetune.data.tokens=0", "finetune.data.tokens"),
        ("finetune.data.seq_len=1", "finetune.data.seq_len"),
        ("snapshot.every_minutes=0", "snapshot.every_minutes"),
        ("snapshot.every_steps=0", "snapshot.every_steps"),
        ("snapshot.keep=0", "snapshot.keep"),
        ("evaluate.every_tokens=-1", "evaluate.every_tokens"),
        ("evaluate.perplexity.seq_len=1", "evaluate.perplexity.seq_len"),
        ("model.device=gpu", "model.device"),
        ("model.device=cuda:x", "model.device"),
        ("stages=[]", "stages"),
        ("stages=[distill]", "stages"),
        ("save_checkpoint=false stages=[plan,init,finetune]", "save_checkpoint=false"),
        ("save_checkpoint=false stages=[plan,init,distill,finetune]", "save_checkpoint=false"),
        ("logger.mode=loud", "logger.mode"),
        ("+strategy.raito=0.5", "raito"),
    ],
)
def test_values_out_of_range_are_refused_by_name(override, key):
    with pytest.raises(ConfigError, match=key.replace(".", r"\.")) as caught:
        composed(*override.split())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "stages", ["[plan,init,finetune,domains]", "[plan,init,finetune,perplexity]", "[plan,init,distill]"]
)
def test_what_learns_may_stay_unsaved_where_it_is_measured(stages):
    assert not composed("save_checkpoint=false", f"stages={stages}").save_checkpoint


def test_stages_that_an_interpolation_gives_are_stages():
    assert composed("stages=${oc.decode:'[plan]'}").stages == [Stage.plan]
    with pytest.raises(ConfigError, match="nap is none of plan"):
        composed("stages=${oc.decode:'[nap]'}")


@pytest.mark.parametrize(("model", "k"), [("phi3_medium_14b", 1536), ("phi2", 1024), ("mistral_7b", 1024)])
def test_the_papers_smallest_rank_is_its_own_for_one_model(model, k):
    assert composed("scale=paper", "strategy=bottom", f"model={model}").strategy.k == k


@pytest.mark.parametrize(
    "words",
    [
        ("strategy=bottom", "distill/schedule=blockwise", "logger=csv", "evaluate/domains=stdlib", "data=mixed"),
        ("model=tiny_t5", "strategy=rank", "init=random", "finetune=lora", "evaluate/zero_shot=nine"),
        ("experiments=tiny/table03_speed",),
    ],
)
def test_plain_values_are_those_that_were_composed(words):
    config = composed(*words)
    made = OmegaConf.to_container(OmegaConf.structured(config), enum_to_str=True)
    assert json.dumps(plain(config)) == json.dumps(made)


def test_a_whole_number_is_a_float_where_one_belongs():
    """So that a configuration made in Python hashes as the same one of the command line."""
    config = composed()
    config.distill.lr, config.finetune.betas = 1, (0, 1)
    values = plain(config)
    assert [json.dumps(values["distill"]["lr"]), json.dumps(values["finetune"]["betas"])] == ["1.0", "[0.0, 1.0]"]
    assert isinstance(values["seed"], int)

"""Starts through the cache: the same bits, and nothing is made twice."""

import logging
import os
import time
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

import lillama.init
import lillama.init.feature
import lillama.init.svd
from lillama.config import Dtype, FeatureConfig, KfacConfig, ModelConfig, RandomConfig, Split, SvdConfig, Weights
from lillama.core.cache import Cache, entries
from lillama.data.tokens import TokenBlocks
from lillama.init import FactorCache, factor_cache, start_factors
from lillama.model.source import ModelSource
from lillama.model.surgery import matrix
from tests.conftest import TINY_LLAMA
from tests.families import tiny
from tests.forks import fork, status

TALL, WIDE, DOWN = "model.layers.0.mlp.gate_proj", "model.layers.0.self_attn.k_proj", "model.layers.2.mlp.down_proj"
LINEARS = {TALL: 7, WIDE: 5, DOWN: 6}
CASES = {
    "llama": {**LINEARS, "model.embed_tokens": 9},
    "gpt2": {"transformer.wte": 9, "transformer.h.1.attn.c_attn": 8, "transformer.h.2.mlp.c_proj": 8},  # tied, Conv1D
    "mixtral": {
        "model.layers.0.mlp.experts.gate_up_proj": 6,
        "model.layers.0.mlp.experts.down_proj": 5,
        "model.layers.1.self_attn.q_proj": 6,
    },
    "t5": {"encoder.block.0.layer.0.SelfAttention.q": 6, "decoder.block.1.layer.1.EncDecAttention.k": 6},
}
STARTS = [SvdConfig(), SvdConfig(split=Split.symmetric), FeatureConfig(), KfacConfig()]
FULL = {TALL: 32, WIDE: 16, DOWN: 32}


@pytest.fixture
def data():
    ids = np.random.default_rng(0).integers(4, 64, (6, 16)).astype(np.int32)
    return TokenBlocks(ids, np.array([16, 16, 9, 16, 1, 16], np.int32))


@pytest.fixture
def cache(tmp_path):
    return FactorCache(Cache(tmp_path), "a model")


def anew(cache, **changes):
    """The same folder, as another run would find it."""
    return replace(cache, cache=Cache(cache.cache.root, cache.cache.limit), **changes)


def state(modules):
    return {f"{name}.{key}": value for name, module in modules.items() for key, value in module.state_dict().items()}


def same(one, other):
    one, other = state(one), state(other)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def held(cache):
    return {entry.path.name: entry.path.stat().st_ino for entry in entries(cache.cache.root, ["factors"])}


@pytest.fixture
def idle(monkeypatch):
    """Call it, and from then on nothing may be computed, nor the model be run."""

    def forbid():
        def fail(*_, **__):
            pytest.fail("made again")

        for name in ("input_moments", "feature_spectrum", "embedding_spectrum", "moment_root"):
            monkeypatch.setattr(lillama.init.feature, name, fail)
        monkeypatch.setattr(lillama.init.svd, "svd_spectrum", fail)
        monkeypatch.setattr(torch.nn.Module, "__call__", fail)

    return forbid


@pytest.mark.parametrize("config", STARTS, ids=["svd", "symmetric", "feature", "kfac"])
@pytest.mark.parametrize("family", CASES)
def test_cold_warm_and_without_a_cache_are_the_same_bits_and_warm_runs_no_model(family, config, data, cache, idle):
    model, ranks = tiny(family), CASES[family]
    without = start_factors(model, ranks, data, config)
    cold = start_factors(model, ranks, data, config, cache=cache)
    assert len(held(cache)) == len(ranks)
    idle()
    warm = start_factors(model, ranks, data, config, cache=anew(cache))
    assert list(without) == list(cold) == list(warm)
    assert same(without, cold)
    assert same(cold, warm)


def test_other_ranks_and_the_split_use_the_same_entries(data, cache, idle, caplog):
    caplog.set_level("INFO")
    model = tiny("llama")
    for config in (SvdConfig(), FeatureConfig()):
        start_factors(model, LINEARS, data, config, cache=cache)
    direct = start_factors(model, {TALL: 3, DOWN: 9}, data, FeatureConfig())
    idle()
    assert same(start_factors(model, {TALL: 3, DOWN: 9}, data, FeatureConfig(), cache=anew(cache)), direct)
    start_factors(model, LINEARS, data, SvdConfig(split=Split.symmetric, keep_bias=False), cache=anew(cache))
    assert "start: 0 of 3 factorisations from the cache" in caplog.text
    assert "start: 2 of 2 factorisations from the cache" in caplog.text
    assert len(held(cache)) == 6


def test_more_tokens_than_there_are_is_the_same_data(data, cache):
    model = tiny("llama")
    for tokens in (10**6, 10**7):
        start_factors(model, LINEARS, data, FeatureConfig(tokens=tokens), cache=cache)
    assert len(held(cache)) == 3


@pytest.mark.parametrize("what", ["data", "tokens", "floor", "model", "method"])
def test_other_data_another_floor_and_another_model_do_not(what, data, cache):
    model, config, other = tiny("llama"), FeatureConfig(), FeatureConfig()
    start_factors(model, LINEARS, data, config, cache=cache)
    if what == "data":
        data = replace(data, ids=data.ids[::-1])
    elif what == "model":
        cache = anew(cache, identity="another")
    else:
        other = {"tokens": FeatureConfig(tokens=16), "floor": FeatureConfig(floor=1e-3), "method": SvdConfig()}[what]
    without = start_factors(model, LINEARS, data, other)
    assert same(start_factors(model, LINEARS, data, other, cache=cache), without)
    assert len(held(cache)) == 6


def test_only_what_is_missing_is_made(data, cache, monkeypatch, caplog):
    caplog.set_level("INFO")
    model, asked = tiny("llama"), []
    start_factors(model, {TALL: 7}, data, FeatureConfig(), cache=cache)
    original = lillama.init.feature.input_moments

    def moments(teacher, names, *rest, **options):
        asked.extend(names)
        return original(teacher, names, *rest, **options)

    monkeypatch.setattr(lillama.init.feature, "input_moments", moments)
    mixed = start_factors(model, LINEARS, data, FeatureConfig(), cache=anew(cache))
    assert asked == [WIDE, DOWN]
    assert "start: 1 of 3 factorisations from the cache" in caplog.text
    assert same(mixed, start_factors(model, LINEARS, data, FeatureConfig()))


def test_a_killed_start_goes_on_where_it_was(data, cache, monkeypatch):
    model, made = tiny("llama"), []
    original = lillama.init.svd.svd_spectrum

    def killed(**arguments):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(1)
        return original(**arguments)

    with monkeypatch.context() as patch:
        patch.setattr(lillama.init.svd, "svd_spectrum", killed)
        with pytest.raises(KeyboardInterrupt):
            start_factors(model, LINEARS, None, SvdConfig(), cache=cache)
    assert len(held(cache)) == 2
    before = held(cache)
    start_factors(model, LINEARS, None, SvdConfig(), cache=anew(cache))  # would wait for ever for a lock left behind
    assert before.items() <= held(cache).items()
    assert len(held(cache)) == 3


def test_a_start_that_fails_on_the_way_lets_others_go_on(cache, monkeypatch):
    held_on = []

    def full(_, factors, **__):
        held_on.append(iter(factors))
        next(held_on[0])
        raise MemoryError

    model = tiny("llama")
    with monkeypatch.context() as patch:
        patch.setattr(lillama.init, "low_rank_modules", full)
        with pytest.raises(MemoryError):
            start_factors(model, LINEARS, None, SvdConfig(), cache=cache)
    start_factors(model, LINEARS, None, SvdConfig(), cache=anew(cache))
    assert len(held(cache)) == 3


@pytest.mark.parametrize("config", [SvdConfig(), FeatureConfig()], ids=["svd", "feature"])
def test_a_rank_that_saves_nothing_makes_the_entry_again_with_all_columns(config, data, cache, idle):
    model = tiny("llama")
    start_factors(model, LINEARS, data, config, cache=cache)
    small = {name: entry.size for name, entry in zip(held(cache), entries(cache.cache.root), strict=True)}
    whole = start_factors(model, FULL, data, config, cache=anew(cache))
    assert len(held(cache)) == 3
    assert sum(entry.size for entry in entries(cache.cache.root)) > sum(small.values())
    for name in FULL:
        product = whole[name].A.weight @ whole[name].B.weight
        torch.testing.assert_close(product, matrix(model, name), atol=1e-5, rtol=1e-5)
    few = start_factors(model, LINEARS, data, config)
    idle()
    assert same(start_factors(model, LINEARS, data, config, cache=anew(cache)), few), "larger entries serve all ranks"


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b[:-9] + bytes([b[-9] ^ 1]) + b[-8:]])
def test_a_damaged_entry_is_made_again_with_a_warning(damage, data, cache, caplog):
    model = tiny("llama")
    cold = start_factors(model, LINEARS, data, FeatureConfig(), cache=cache)
    for entry in entries(cache.cache.root)[:2]:
        entry.path.write_bytes(damage(entry.path.read_bytes()))
    warm = start_factors(model, LINEARS, data, FeatureConfig(), cache=anew(cache))
    assert caplog.text.count("damaged") == 2
    assert same(cold, warm)
    assert list(cold) == list(warm)
    caplog.clear()
    start_factors(model, LINEARS, data, FeatureConfig(), cache=anew(cache))
    assert "damaged" not in caplog.text


@pytest.mark.parametrize("limit", [100, 6000])
def test_a_limit_smaller_than_an_entry_or_than_all_of_them_changes_no_factor(limit, data, tmp_path):
    model, limited = tiny("llama"), FactorCache(Cache(tmp_path, limit), "a model")
    without = start_factors(model, LINEARS, data, FeatureConfig())
    for _ in range(2):
        assert same(start_factors(model, LINEARS, data, FeatureConfig(), cache=anew(limited)), without)
        assert sum(entry.size for entry in entries(tmp_path, ["factors"])) <= limit
    assert len(held(limited)) == (0 if limit == 100 else 2)


def test_a_warm_start_tells_of_weak_directions_and_idle_experts_as_a_cold_one(data, cache, caplog):
    name = "lillama.init.reports"
    caplog.set_level("INFO", logger=name)
    model, few = tiny("mixtral"), data.head(1)
    few = TokenBlocks(few.ids[:, :2], np.array([2], np.int32))
    told = []
    for known in (None, cache, anew(cache)):
        caplog.clear()
        start_factors(model, CASES["mixtral"], few, FeatureConfig(), cache=known)
        told.append([record.getMessage() for record in caplog.records if record.name == name])
    assert told[0] == told[1] == told[2]
    assert any("the data says nothing of" in line for line in told[0])
    assert any("no calibration token reached experts" in line for line in told[0])


def test_random_starts_are_not_kept(cache):
    start_factors(tiny("llama"), LINEARS, None, RandomConfig(), cache=cache)
    assert not held(cache)


def test_the_identity_of_a_model_is_what_its_matrices_depend_on(tmp_path):
    config = ModelConfig(name="a", weights=Weights.random, architecture=dict(TINY_LLAMA), device="cpu")
    model = tiny("llama")

    def identity(model=model, seed=0, **changes):
        return factor_cache(
            Cache(tmp_path), ModelSource(replace(config, **changes), tmp_path), model, seed=seed
        ).identity

    assert identity() == identity(name="b") == identity(tiny("llama"))
    larger = tiny("llama", vocab_size=65)
    assert len({identity(), identity(seed=1), identity(dtype=Dtype.bfloat16), identity(larger)}) == 4
    folders = []
    for seed in range(2):
        torch.manual_seed(seed)
        model.lm_head.weight.copy_(torch.randn(64, 32))
        model.save_pretrained(tmp_path / str(seed))
        folders.append({"path": str(tmp_path / str(seed)), "weights": Weights.pretrained, "architecture": {}})
    assert identity(**folders[0]) != identity(**folders[1])
    (tmp_path / "0").rename(tmp_path / "moved")
    moved = {**folders[0], "path": str(tmp_path / "moved")}
    (tmp_path / "1").rename(tmp_path / "0")
    assert identity(**moved) != identity(**folders[0]), "by content, not by place"
    hub = {"path": "org/name", "weights": Weights.pretrained, "architecture": {}}
    first = identity(**hub)
    model.config._commit_hash = "0123"
    assert len({first, identity(**hub), identity(**hub, revision="v2")}) == 3


@pytest.mark.parametrize("config", [SvdConfig(), FeatureConfig()], ids=["svd", "feature"])
def test_what_another_made_in_the_meantime_is_read(config, data, cache, monkeypatch, idle):
    model, own = tiny("llama"), anew(cache)

    @contextmanager
    def waited(*_):
        others = start_factors(model, LINEARS, data, config, cache=cache)
        made.append(others)
        idle()
        yield

    made = []
    monkeypatch.setattr(own.cache, "lock", waited)
    assert same(start_factors(model, LINEARS, data, config, cache=own), made[0])


def make_slowly(own, other):
    """Make a start when the other process has come as far as this one, and write down what is made and logged."""
    make, told = lillama.init.svd.svd_spectrum, own.with_suffix(".txt").open("w", buffering=1)
    logging.basicConfig(level="INFO", format="%(message)s", stream=told, force=True)

    def slowly(**arguments):
        told.write("made\n")
        time.sleep(0.3)
        return make(**arguments)

    lillama.init.svd.svd_spectrum = slowly
    own.touch()
    while not other.exists():
        time.sleep(0.01)
    start_factors(tiny("llama"), LINEARS, None, SvdConfig(), cache=FactorCache(Cache(own.parent), "a model"))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_of_two_processes_at_once_one_makes_and_the_other_waits_and_reads(tmp_path):
    places = (tmp_path / "one", tmp_path / "two")
    processes = [fork(partial(make_slowly, *pair)) for pair in (places, places[::-1])]
    assert [status(process) for process in processes] == [0, 0]
    told = [place.with_suffix(".txt").read_text() for place in places]
    assert sum(text.count("made\n") for text in told) == 3
    whole = "".join(told)
    assert whole.count("waiting for it") == 1
    assert "start: 0 of 3" in whole
    assert "start: 3 of 3" in whole

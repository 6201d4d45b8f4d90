import json
import math
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lillama.config import ModelConfig, ThroughputConfig, Weights
from lillama.core.errors import ConfigError, DivergedError
from lillama.evaluate.generation import Case, PeakMemory, cases_of, forward, generate, weight_bytes
from lillama.evaluate.throughput import throughput
from lillama.evaluate.variants import Variant, model_variants, student_variants
from lillama.model.source import ModelSource
from lillama.model.student import random_student
from tests.families import FAMILIES, tiny

IDS = torch.randint(4, 60, (300,), generator=torch.Generator().manual_seed(0))
QUICK = {"lengths": [8, 16], "batch_size": 2, "decode_batches": [1, 2], "prompt": 6, "new_tokens": 3, "rounds": 2}


def quick(**changes):
    return ThroughputConfig(**{**QUICK, "warmup": 0, **changes})


def student_of(model):
    return random_student(model, {f"model.layers.{n}.mlp.up_proj": 4 for n in range(4)})


class Calls:
    """How often and in what order variants were at work, and the lengths that their models were called with."""

    def __init__(self, variants):
        self.turns = []
        self.lengths = []
        self.variants = [Variant(variant.role, self.watched(variant)) for variant in variants]

    def watched(self, variant):
        @contextmanager
        def at_work():
            self.turns.append(variant.role)
            with variant.at_work() as model:
                hook = model.register_forward_pre_hook(self.note, with_kwargs=True)
                try:
                    yield model
                finally:
                    hook.remove()

        return at_work

    def note(self, model, args, kwargs):
        self.lengths.append(kwargs["input_ids"].shape[1])


def failing(error, *, at, tries=None):
    """A hook that fails where a forward pass has this length."""

    def hook(model, args, kwargs):
        if kwargs["input_ids"].shape[1] == at:
            if tries is not None:
                tries.append(at)
            raise error

    return hook


@pytest.fixture
def measured(tiny_model):
    return throughput(student_variants(student_of(tiny_model)), IDS, quick())


def test_speed_is_tokens_over_seconds(measured):
    tokens = {
        "forward": {"8": 2 * 8, "16": 2 * 16},
        "prefill": {"1": 6, "2": 2 * 6},
        "decode": {"1": 2, "2": 2 * 2},  # the first of the three new tokens is the prefill's
    }
    for role in ("dense", "compressed"):
        for part, cases in tokens.items():
            assert measured[role][part].keys() == cases.keys()
            for key, count in cases.items():
                found = measured[role][part][key]
                assert found["tokens_per_second"]["highest"] == pytest.approx(count / found["seconds"]["lowest"])
                assert found["tokens_per_second"]["lowest"] == pytest.approx(count / found["seconds"]["highest"])


def test_ratios_lie_within_what_was_measured(measured):
    for part in ("forward", "prefill", "decode"):
        for key, ratio in measured["ratios"][part].items():
            dense, compressed = (measured[role][part][key]["tokens_per_second"] for role in ("dense", "compressed"))
            assert compressed["lowest"] / dense["highest"] * 0.999 <= ratio["speed"]["lowest"]
            assert ratio["speed"]["highest"] <= compressed["highest"] / dense["lowest"] * 1.001
    for role in ("dense", "compressed"):
        assert measured[role]["rounds"] == 2


def test_results_are_plain_json(measured):
    assert json.loads(json.dumps(measured, allow_nan=False)) == measured


def test_weights_are_counted_once_and_in_bytes(tiny_model, measured):
    dense = sum(parameter.numel() for parameter in tiny_model.parameters())
    saved = 4 * (48 * 128 - 4 * (48 + 128))
    buffers = sum(buffer.nbytes for buffer in tiny_model.buffers())
    assert measured["dense"]["memory"]["weights"] == 4 * dense + buffers
    assert measured["compressed"]["memory"]["weights"] == 4 * (dense - saved) + buffers
    assert measured["ratios"]["weights"] == pytest.approx((4 * (dense - saved) + buffers) / (4 * dense + buffers))
    tiny_model.lm_head.weight = tiny_model.model.embed_tokens.weight
    assert weight_bytes(tiny_model) == 4 * (dense - 260 * 48) + buffers


def test_a_peak_holds_what_was_taken_in_between(tiny_model):
    peak, size = PeakMemory(tiny_model), 2**28
    if peak.bytes() is None:
        pytest.skip("the system does not let a process forget its peak")
    before = peak.bytes()
    torch.ones(size, dtype=torch.uint8)
    assert size * 0.9 < peak.bytes() - before < size * 1.2
    assert PeakMemory(tiny_model).bytes() < size, "the next one begins anew"


def test_variants_take_turns_and_each_goes_through_its_cases(tiny_model):
    calls = Calls(student_variants(student_of(tiny_model)))
    throughput(calls.variants, IDS, quick(rounds=3, decode_batches=[], warmup=2))
    assert calls.turns == ["dense", "compressed"] * 3
    assert calls.lengths == [8, 8, 8, 16, 16, 16] * 6, "two uncounted passes before each counted one"


def test_one_variant_has_no_ratios(tiny_model):
    found = throughput(model_variants({"compressed": tiny_model}), IDS, quick())
    assert found.keys() == {"compressed"}


def test_no_round_but_the_first_begins_when_time_is_up_and_what_does_not_fit_was_not_run(tiny_model):
    found = throughput(student_variants(student_of(tiny_model)), IDS, quick(seconds=1e-9, rounds=5))
    for role in ("dense", "compressed"):
        assert found[role]["rounds"] == 1
        assert isinstance(found[role]["decode"]["1"], dict), "the first case is always made"
        assert found[role]["forward"] == {"8": "not run", "16": "not run"}
        assert found[role]["prefill"]["2"] == found[role]["decode"]["2"] == "not run"
    assert found["ratios"]["forward"] == {}
    assert found["ratios"]["decode"].keys() == {"1"}


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("no"), MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_a_case_without_memory_is_oom_and_not_tried_again(tiny_model, error):
    dense, compressed = student_variants(student_of(tiny_model))
    tries = []
    calls = Calls([Variant("dense", lambda: failing_at_work(dense, error, at=16, tries=tries)), compressed])
    found = throughput(calls.variants, IDS, quick(decode_batches=[]))
    assert found["dense"]["forward"]["16"] == "OOM"
    assert isinstance(found["dense"]["forward"]["8"], dict)
    assert isinstance(found["compressed"]["forward"]["16"], dict)
    assert found["ratios"]["forward"].keys() == {"8"}
    assert tries == [16], "in the second round it is left out"
    assert calls.lengths == [8, 8, 16, 8, 8, 16], "and all others are made"


@contextmanager
def failing_at_work(variant, error, *, at, tries):
    with variant.at_work() as model:
        hook = model.register_forward_pre_hook(failing(error, at=at, tries=tries), with_kwargs=True)
        try:
            yield model
        finally:
            hook.remove()


def test_a_variant_that_cannot_be_entered_is_oom_throughout(tiny_model):
    tries = []

    @contextmanager
    def too_large():
        tries.append(1)
        raise torch.OutOfMemoryError("no")
        yield

    found = throughput([Variant("dense", too_large), *model_variants({"compressed": tiny_model})], IDS, quick())
    dense = found["dense"]
    assert {case for part in ("forward", "prefill", "decode") for case in dense[part].values()} == {"OOM"}
    assert "memory" not in dense
    assert found["ratios"] == {"forward": {}, "prefill": {}, "decode": {}}
    assert isinstance(found["compressed"]["forward"]["8"], dict)
    assert len(tries) == 1


def test_any_other_error_is_not_memory(tiny_model):
    tiny_model.register_forward_pre_hook(failing(RuntimeError("boom"), at=16), with_kwargs=True)
    with pytest.raises(RuntimeError, match="boom"):
        throughput(model_variants({"dense": tiny_model}), IDS, quick())


@pytest.mark.parametrize("sizes", [[], [1]])
def test_logits_that_are_not_finite_give_no_figure(tiny_model, sizes):
    with torch.no_grad():
        tiny_model.model.norm.weight[0] = math.nan
    with pytest.raises(DivergedError, match=f"dense model's logits at length {6 if sizes else 8} are not finite"):
        throughput(model_variants({"dense": tiny_model}), IDS, quick(decode_batches=sizes))


def test_a_short_text_is_repeated_and_that_is_said(tiny_model):
    found = throughput(model_variants({"dense": tiny_model}), IDS[:20], quick(rounds=1))
    assert found["dense"]["notes"] == ["the text of 20 tokens is repeated to make up 32"]
    assert throughput(model_variants({"dense": tiny_model}), IDS, quick(rounds=1))["dense"]["notes"] == []


def test_prompts_are_cut_from_the_text_one_after_another(tiny_model):
    seen = []
    tiny_model.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs["input_ids"]), with_kwargs=True)
    throughput(model_variants({"dense": tiny_model}), IDS, quick(rounds=1, decode_batches=[]))
    assert [ids.tolist() for ids in seen] == [IDS[: 2 * n].view(2, n).tolist() for n in (8, 16)]


def test_a_length_beyond_a_table_of_positions_is_refused_by_name():
    model = tiny("gpt2")  # 64 positions
    with pytest.raises(ConfigError, match=r"evaluate\.throughput\.lengths=65: .* takes at most 64 tokens") as caught:
        throughput(model_variants({"dense": model}), IDS, quick(lengths=[64, 65], decode_batches=[]))
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"evaluate\.throughput\.prompt=62"):
        throughput(model_variants({"dense": model}), IDS, quick(prompt=62))


def test_a_length_beyond_rotary_positions_is_measured(tmp_path):
    architecture = {"model_type": "llama", **FAMILIES["llama"], "max_position_embeddings": 8}
    config = ModelConfig(name="short", weights=Weights.random, architecture=architecture, device="cpu")
    found = throughput(model_variants({"dense": ModelSource(config, tmp_path).load()}), IDS, quick(rounds=1))
    assert isinstance(found["dense"]["forward"]["16"], dict)


def test_tokens_that_a_model_does_not_know_are_refused(tiny_model):
    with pytest.raises(ConfigError, match=r"model\.tokenizer: the text holds the token 260"):
        throughput(model_variants({"dense": tiny_model}), torch.tensor([5, 260, 7]), quick())


@pytest.mark.parametrize("family", ["llama", "mixtral", "mamba", "t5", "bart"])
def test_every_family_writes_as_many_tokens_as_asked(family):
    """Prefill, and then a step for each token after the first: whatever the family keeps between steps."""
    model, steps = tiny(family), []
    decoder = model.get_decoder() if model.config.is_encoder_decoder else model
    decoder.register_forward_hook(lambda *_: steps.append(1))
    seconds, scores = generate(model, IDS[:12].view(2, 6), 5)
    assert len(steps) == 5
    assert seconds.keys() == {"prefill", "decode"}
    assert min(seconds.values()) > 0
    assert scores.shape == (2, 64)


def test_a_generation_does_not_end_where_the_model_would():
    model = tiny("llama")
    model.generation_config.eos_token_id = list(range(63))  # all but one
    seconds, _ = generate(model, IDS[:6].view(1, 6), 4)
    assert seconds["decode"] > 0


@torch.no_grad()
def test_a_forward_pass_gives_all_logits_of_the_model():
    model, ids = tiny("llama"), IDS[:12].view(2, 6)
    seconds, logits = forward(model, ids)
    assert seconds["forward"] > 0
    torch.testing.assert_close(logits, model(ids).logits)


@settings(max_examples=50, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 64), min_size=1, max_size=5),
    sizes=st.lists(st.integers(1, 8), max_size=4),
    new=st.integers(2, 9),
)
def test_cases_are_each_once_and_the_cheap_ones_first(lengths, sizes, new):
    cases = cases_of(ThroughputConfig(lengths=lengths, decode_batches=sizes, prompt=7, new_tokens=new, batch_size=3))
    generations = [Case(size, 7, new) for size in sorted(set(sizes))]
    assert cases == [*generations, *(Case(3, length) for length in sorted(set(lengths)))]
    for case in cases:
        assert sum(case.tokens.values()) == case.sequences * (case.length + max(case.new_tokens - 1, 0))

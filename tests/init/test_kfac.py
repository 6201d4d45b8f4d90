"""The two-sided start: its moments are plain autograd's, and its factors raise the loss least."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from lillama.config import FeatureConfig, KfacConfig, OutputMoment, Place
from lillama.core.errors import DivergedError
from lillama.data.tokens import TokenBlocks
from lillama.init import StartNotes, start_factors
from lillama.init.curvature import LossMean, curvatures, is_plain_chain
from lillama.init.kfac import loss_spectra
from lillama.init.labels import CalibrationLoss
from lillama.model.blocks import Blocks
from lillama.model.inputs import Batch, model_inputs
from lillama.model.prediction import predictions
from lillama.model.student import Student
from lillama.model.surgery import matrix
from lillama.model.targets import model_shape
from tests.conftest import random_tokens
from tests.families import batch_for, tiny


class Batches:
    """Calibration data that is a few batches of what a family reads."""

    def __init__(self, model, length=12, count=3, lengths=None):
        self.given = [batch_for(model, 2, length, seed=seed) for seed in range(count)]
        if lengths is not None:
            mask = torch.arange(length) < torch.tensor(lengths)[:, None]
            self.given = [replace(batch, mask=mask) for batch in self.given]
        self.hash = "batches"

    @property
    def tokens(self):
        return sum(batch.tokens for batch in self.given)

    def __len__(self):
        return sum(map(len, self.given))

    def head(self, tokens):
        return self

    def batches(self, size, device):
        return iter(self.given)


def plain(model, names, data):
    """Inputs' and gradients' moments, and their rows, by hooks on a whole forward and backward pass.

    Padding is left out: an encoder's for what works on its rows, cross-attention's keys and values included.
    """
    inputs, outputs, rows, hooks, masks = {}, {}, {}, [], []

    def real(name, x):
        mask = masks[-1][-1 if name.startswith(DECODERS) and not name.endswith(OF_THE_ENCODER) else 0]
        return (x.flatten(0, -2) if mask is None else x[mask]).double()

    def watch(name, module):
        def hook(_, args, output):
            x = real(name, args[0].detach())
            inputs[name], rows[name] = inputs.get(name, 0) + x.T @ x, rows.get(name, 0) + len(x)

            def back(gradient):
                g = real(name, gradient)
                outputs[name] = outputs.get(name, 0) + g.T @ g

            output.register_hook(back)

        return module.register_forward_hook(hook)

    for name in names:
        hooks.append(watch(name, model.get_submodule(name)))
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    for batch in data.batches(2, "cpu"):
        arguments, targets = predictions(model, batch)
        masks.append(model_inputs(model, batch).masks)
        logits = model(**arguments).logits
        F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum").backward()
    for hook in hooks:
        hook.remove()
    model.requires_grad_(False)
    return inputs, outputs, rows


DECODERS = ("decoder.", "model.decoder.")
OF_THE_ENCODER = ("encoder_attn.k_proj", "encoder_attn.v_proj", "EncDecAttention.k", "EncDecAttention.v")
FAMILIES = {
    "llama": ["model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj", "model.layers.2.mlp.gate_proj"],
    "gpt2": ["transformer.h.0.attn.c_attn", "transformer.h.2.mlp.c_proj"],
    "falcon": ["transformer.h.0.self_attention.query_key_value", "transformer.h.1.mlp.dense_4h_to_h"],
    "gemma3_text": ["model.layers.0.self_attn.v_proj", "model.layers.2.mlp.up_proj"],
    "mixtral": ["model.layers.0.self_attn.v_proj", "model.layers.1.self_attn.o_proj"],
    "mamba": ["backbone.layers.0.mixer.in_proj", "backbone.layers.1.mixer.out_proj"],
    "jamba": ["model.layers.0.mamba.in_proj", "model.layers.1.self_attn.q_proj"],
    "t5": ["encoder.block.0.layer.0.SelfAttention.q", "decoder.block.1.layer.1.EncDecAttention.k"],
    "bart": ["model.encoder.layers.0.fc1", "model.decoder.layers.1.encoder_attn.v_proj"],
    "whisper": [
        "model.encoder.layers.0.fc1",
        "model.decoder.layers.1.encoder_attn.k_proj",
        "model.decoder.layers.0.fc2",
    ],
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("place", [Place.memory, Place.disk])
def test_moments_are_those_of_plain_autograd(family, place, tmp_path):
    model = tiny(family)
    data, names = Batches(model), FAMILIES[family]
    inputs, outputs, rows = plain(model, names, data)
    mean = LossMean()
    scratch = tmp_path if place is Place.disk else None
    found = dict(curvatures(model, names, data, KfacConfig(), mean=mean, scratch=scratch))
    assert set(found) == set(names)
    for name in names:
        close_to(found[name], inputs[name], outputs[name], rows[name])
    assert mean.count > 0
    assert not list(tmp_path.rglob("*.bin"))


@pytest.mark.parametrize("family", ["t5", "bart", "whisper"])
@pytest.mark.parametrize(("length", "lengths"), [(12, (12, 7)), (11, (8, 11)), (12, (12, 12)), (11, None)])
def test_an_encoder_decoders_moments_are_of_its_own_rows_on_both_sides(family, length, lengths):
    """Its two sides have rows of their own, and cross-attention takes keys and values of the encoder's."""
    model = tiny(family)
    data = Batches(model, length, lengths=lengths)
    names = [target.name for target in model_shape(model).targets]
    assert any(name.endswith(OF_THE_ENCODER) for name in names)
    found = dict(curvatures(model, names, data, KfacConfig(), mean=LossMean()))
    inputs, outputs, rows = plain(model, names, data)
    for name in names:
        close_to(found[name], inputs[name], outputs[name], rows[name])


def close_to(found, inputs, outputs, rows):
    assert found.inputs.count == found.outputs.count == rows
    close(found.inputs.value * rows, inputs)
    close(found.outputs.value * rows, outputs)


def close(one, other):
    error = (one - other).norm() / other.norm()
    assert float(error) < 1e-5


def test_plain_chains_are_streamed_and_others_run_whole():
    chained = {name: is_plain_chain(Blocks(tiny(name)), batch_for(tiny(name))) for name in FAMILIES}
    assert {name for name, chain in chained.items() if not chain} == {"t5", "bart", "whisper"}


def test_moments_in_several_passes_are_those_in_one():
    model = tiny("llama")
    names = [target.name for target in model_shape(model).targets]
    data, few = Batches(model), 3 * 8 * 48**2
    whole, parts = (
        dict(curvatures(model, names, data, KfacConfig(), mean=LossMean(), **limit)) for limit in ({}, {"limit": few})
    )
    assert list(whole) == list(parts)
    for name in names:
        assert torch.equal(whole[name].inputs.value, parts[name].inputs.value)
        assert torch.equal(whole[name].outputs.value, parts[name].outputs.value)


def test_a_diagonal_moment_is_the_diagonal_of_the_full_one():
    model, names = tiny("llama"), FAMILIES["llama"]
    data, diagonal = Batches(model), KfacConfig(output=OutputMoment.diagonal)
    full = dict(curvatures(model, names, data, KfacConfig(), mean=LossMean()))
    found = dict(curvatures(model, names, data, diagonal, mean=LossMean()))
    for name in names:
        torch.testing.assert_close(found[name].outputs.value, full[name].outputs.value.diagonal(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss", "qwen3_moe", "hunyuan_v1_moe"])
def test_the_gradients_of_single_experts_are_those_of_their_weights(family):
    """Of two tokens only the first predicts: an expert's weight gradient is g x^T, and its moments g g^T and x x^T."""
    model = tiny(family)
    names = [target.name for target in model_shape(model).targets if target.copies > 1 and target.block == 2]
    data, reached = Batches(model), 0
    for seed in range(4):
        data.given = [batch_for(model, 1, 2, seed=seed)]
        found = dict(curvatures(model, names, data, KfacConfig(), mean=LossMean()))
        for name, gradients in weight_gradients(model, names, data.given[0]).items():
            for gradient, x, g in zip(gradients, found[name].inputs, found[name].outputs, strict=True):
                if x.count == 1:  # this expert saw one of the two tokens
                    reached += 1
                    expected = gradient @ gradient.T / x.value.trace()
                    assert float((g.value - expected).norm()) <= 1e-5 * float(expected.norm()) + 1e-12
    assert reached


def weight_gradients(model, names, batch):
    """The gradients [experts, out, in] of fused experts' weights, by name."""
    model.requires_grad_(True).zero_grad()
    arguments, targets = predictions(model, batch)
    F.cross_entropy(model(**arguments).logits.flatten(0, 1), targets.flatten(), reduction="sum").backward()
    found = {}
    for name in names:
        parent, _, last = name.rpartition(".")
        experts = model.get_submodule(parent)
        gradient = getattr(experts, last).grad.double()
        found[name] = gradient.transpose(1, 2) if experts.is_transposed else gradient
    model.requires_grad_(False)
    return found


TABLES = {
    "gpt2": ("transformer.wte", 1.0),
    "llama": ("model.embed_tokens", 1.0),
    "gemma3_text": ("model.embed_tokens", 32**0.5),
    "xglm": ("model.embed_tokens", 32**0.5),
}


@pytest.mark.parametrize("family", TABLES)
def test_an_embedding_has_its_tokens_and_the_gradients_of_its_vectors(family):
    """Of the vectors as the table holds them: some models multiply them by a scale."""
    (name, scale), model = TABLES[family], tiny(family)
    data = Batches(model)
    (found,) = dict(curvatures(model, [name], data, KfacConfig(), mean=LossMean())).values()
    ids = torch.cat([batch.ids.flatten() for batch in data.given])
    assert torch.equal(found.inputs, ids.bincount(minlength=64))
    seen, total = [], 0

    def watch(_, args, output):
        seen.append(output.requires_grad_())
        return output

    hook = model.get_input_embeddings().register_forward_hook(watch)
    for batch in data.given:
        arguments, targets = predictions(model, batch)
        logits = model(**arguments).logits
        F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum").backward(inputs=[seen[-1]])
        gradient = scale * seen[-1].grad.flatten(0, 1).double()
        total = total + gradient.T @ gradient
    hook.remove()
    close(found.outputs.value * len(ids), total)
    assert (found.head is not None) == (family != "llama"), "a tied head has moments, too"
    modules = start_factors(model, {name: 9}, data, KfacConfig())
    assert all(bool(p.isfinite().all()) for module in modules.values() for p in module.parameters())


@pytest.mark.parametrize("lengths", [None, (12, 5)], ids=["packed", "padded"])
@pytest.mark.parametrize(("family", "name"), [("llama", "lm_head"), ("gpt2", "transformer.wte")])
def test_the_rows_of_a_head_have_the_weight_that_the_model_predicts_them_with(family, name, lengths):
    """As much in all as the gradients of the text's labels have, shared out by their expectation, p (1 - p)."""
    model = tiny(family)
    data = Batches(model, lengths=lengths)
    (found,) = dict(curvatures(model, [name], data, KfacConfig(), mean=LossMean())).values()
    head = found if name == "lm_head" else found.head
    expected, total = 0, 0.0
    for batch in data.given:
        arguments, targets = predictions(model, batch)
        logits = model(**arguments).logits[targets >= 0].double().requires_grad_()
        share = logits.detach().softmax(-1)
        expected = expected + (share * (1 - share)).sum(0)
        F.cross_entropy(logits, targets[targets >= 0], reduction="sum").backward()
        total += float(logits.grad.square().sum())
    close(head.outputs.total, expected / expected.sum() * total)


def test_what_is_predicted_is_what_small_cuts_do_to_the_loss(tiny_model):
    """Of labels drawn from the model itself the curvature is that of the KL to the dense model."""
    data = random_tokens(24, 32)
    names = [target.name for target in model_shape(tiny_model).targets]
    ranks = {name: rank for name in names for rank in [min(matrix(tiny_model, name).shape) - 2]}
    predicted, measured = {}, {}
    for config in (KfacConfig(labels="sampled", output_damping=1e-6), FeatureConfig()):
        notes = StartNotes()
        student = Student(tiny_model, start_factors(tiny_model, ranks, data, config, notes=notes))
        predicted[type(config)] = notes.predicted_loss_rise
        measured[type(config)] = divergence(student, data)
    assert measured[KfacConfig] < measured[FeatureConfig]
    assert predicted[KfacConfig] == pytest.approx(measured[KfacConfig], rel=0.5)
    assert predicted[FeatureConfig] is None


@torch.no_grad()
def divergence(student, data):
    """The mean KL of the compressed model to the dense one, a predicted token."""
    total, count = 0.0, 0
    for batch in data.batches(4, "cpu"):
        dense = F.log_softmax(student.teacher(batch.ids).logits[:, :-1], -1)
        with student.in_place() as compressed:
            cut = F.log_softmax(compressed(batch.ids).logits[:, :-1], -1)
        total += float(F.kl_div(cut, dense, reduction="sum", log_target=True))
        count += batch.ids[:, 1:].numel()
    return total / count


def test_what_is_predicted_is_half_the_values_that_the_ranks_leave_out(tiny_model, tokens):
    names = [target.name for target in model_shape(tiny_model).targets]
    notes = StartNotes()
    start_factors(tiny_model, dict.fromkeys(names, 6), tokens, KfacConfig(), notes=notes)
    spectra = loss_spectra(tiny_model, names, tokens, KfacConfig())
    expected = sum(0.5 * sum(values[6:]) for values in spectra.values.values())
    assert notes.predicted_loss_rise == pytest.approx(expected, rel=1e-4)
    assert spectra.loss > 0


def test_drawn_labels_are_seeded_and_follow_the_models_predictions():
    shares = torch.tensor([0.7, 0.2, 0.1])
    targets = torch.zeros(1, 4000, dtype=torch.long)
    targets[0, :100] = -100
    loss = CalibrationLoss(None, True, None, seed=0)
    logits = shares.log().expand(1, 4000, 3)
    one, same, other = (float(loss.summed(logits, targets, number)) for number in (0, 0, 1))
    assert one == same != other
    assert one / 3900 == pytest.approx(float(-(shares * shares.log()).sum()), rel=0.05)


def test_a_masked_language_model_predicts_what_is_masked():
    model = tiny("bert")
    batch = Batch(torch.randint(4, 60, (4, 50), generator=torch.Generator().manual_seed(0)))
    read, _, targets = CalibrationLoss(model, False, 3, seed=0).prepare(batch, 0)
    masked = targets != -100
    assert 0.05 < float(masked.float().mean()) < 0.3
    assert bool((read.ids[masked] == 3).all())
    assert torch.equal(targets[masked], batch.ids[masked])
    assert torch.equal(read.ids[~masked], batch.ids[~masked])
    whole, _, everything = CalibrationLoss(model, False, None, seed=0).prepare(batch, 0)
    assert torch.equal(whole.ids, everything)


def test_a_loss_that_is_not_finite_stops_the_start(tiny_model, tokens):
    tiny_model.lm_head.weight.data[5] = float("nan")
    with pytest.raises(DivergedError, match="the loss of calibration batch 0 is nan"):
        start_factors(tiny_model, {FAMILIES["llama"][0]: 4}, tokens, KfacConfig())


def test_padding_has_no_part_in_the_moments(tiny_model, tokens):
    name = FAMILIES["llama"][0]
    lengths, ids = tokens.lengths.copy(), tokens.ids.copy()
    lengths[1::2] = 5
    ids[1::2, 5:] = 7
    padded = [TokenBlocks(tokens.ids, lengths), TokenBlocks(ids, lengths)]
    one, other = (dict(curvatures(tiny_model, [name], d, KfacConfig(), mean=LossMean()))[name] for d in padded)
    assert one.inputs.count == other.inputs.count == int(lengths.sum())
    torch.testing.assert_close(one.inputs.value, other.inputs.value)
    torch.testing.assert_close(one.outputs.value, other.outputs.value)


@pytest.mark.parametrize("config", [KfacConfig(), FeatureConfig()], ids=["kfac", "feature"])
def test_a_matrix_that_no_token_reaches_is_named_and_starts_from_its_weights(tiny_model, tokens, config, caplog):
    tiny_model.model.layers[1].idle = torch.nn.Linear(48, 48)
    (module,) = start_factors(tiny_model, {"model.layers.1.idle": 48}, tokens, config).values()
    assert "no calibration token reached model.layers.1.idle" in caplog.text
    product = module.A.weight @ module.B.weight
    torch.testing.assert_close(product, tiny_model.model.layers[1].idle.weight, atol=1e-4, rtol=1e-4)

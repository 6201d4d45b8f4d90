"""The two-sided start: its moments are plain autograd's, and its factors raise the loss least."""

import pytest
import torch.nn.functional as F

from lillama.config import KfacConfig, Place
from lillama.init.curvature import LossMean, curvatures
from lillama.model.prediction import predictions
from tests.families import batch_for, tiny


class Batches:
    """Calibration data that is a few batches of what a family reads."""

    def __init__(self, model, lengths=None):
        self.given = [batch_for(model, 2, 12, seed=seed) for seed in range(3)]
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
    """Inputs' and gradients' moments by hooks on a whole forward and backward pass."""
    inputs, outputs, hooks = {}, {}, []

    def watch(name, module):
        def hook(_, args, output):
            x = args[0].detach().flatten(0, -2).double()
            inputs[name] = inputs.get(name, 0) + x.T @ x

            def back(gradient):
                g = gradient.flatten(0, -2).double()
                outputs[name] = outputs.get(name, 0) + g.T @ g

            output.register_hook(back)

        return module.register_forward_hook(hook)

    rows = 0
    for name in names:
        hooks.append(watch(name, model.get_submodule(name)))
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    for batch in data.batches(2, "cpu"):
        arguments, targets = predictions(model, batch)
        logits = model(**arguments).logits
        F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum").backward()
        rows += batch.ids.numel()
    for hook in hooks:
        hook.remove()
    model.requires_grad_(False)
    return inputs, outputs, rows


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
    inputs, outputs, _ = plain(model, names, data)
    mean = LossMean()
    scratch = tmp_path if place is Place.disk else None
    found = dict(curvatures(model, names, data, KfacConfig(), mean=mean, scratch=scratch))
    assert set(found) == set(names)
    for name in names:
        mine, count = found[name], found[name].inputs.count
        assert mine.outputs.count == count
        close(mine.inputs.value * count, inputs[name])
        close(mine.outputs.value * count, outputs[name])
    assert mean.count > 0
    assert not list(tmp_path.rglob("*.bin"))


def close(one, other):
    error = (one - other).norm() / other.norm()
    assert float(error) < 1e-5

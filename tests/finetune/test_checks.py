"""What cannot be fine-tuned, in one line."""

import pytest

from lillama.config import Dtype, Scope, Stage, Task, Tune
from lillama.core.errors import ConfigError
from lillama.finetune import check_finetune
from tests.conftest import composed


@pytest.fixture
def config():
    return composed("model=tiny_random", "finetune=full", "finetune/data=stdlib_docs", "stages=[finetune]")


def refused(config, task=Task.causal_lm):
    with pytest.raises(ConfigError) as caught:
        check_finetune(config, task, compressed=False)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_can_be_made_passes(config):
    check_finetune(config, Task.causal_lm, compressed=False)
    config.finetune.scope = Scope.decoder
    check_finetune(config, Task.seq2seq_lm, compressed=False)


def test_a_model_needs_a_loss_and_data_of_its_kind(config):
    assert "predicts no next token, so not finetune" in refused(config, Task.masked_lm)
    assert "finetune.data.source=stdlib_docs: " in refused(config, Task.speech_seq2seq)
    config.finetune.scope = Scope.encoder
    assert "finetune.scope=encoder: " in refused(config)


def test_factors_come_from_the_run_or_with_the_checkpoint(config):
    config.finetune.train = Tune.factors
    assert "finetune.train=factors: tiny_random is dense and has none" in refused(config)
    check_finetune(config, Task.causal_lm, compressed=True)
    config.stages = [Stage.plan, Stage.init, Stage.finetune]
    check_finetune(config, Task.causal_lm, compressed=False)


def test_it_is_made_by_one_process_with_the_model_on_its_device(config, monkeypatch):
    config.model.offload = True
    assert "model.offload=true" in refused(config)
    config.model.offload, config.model.dtype = False, Dtype.float16
    assert "model.dtype=float16" in refused(config)
    config.model.dtype = Dtype.bfloat16
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "made by one process" in refused(config)

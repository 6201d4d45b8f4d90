"""An empty environment variable is one that is not set."""

import os
from unittest.mock import MagicMock

import pytest
import wandb
from omegaconf import OmegaConf
from omegaconf.errors import InterpolationResolutionError

from lillama.config import LoggerConfig
from lillama.config.compose import set_up
from lillama.core.environment import variable
from lillama.core.errors import ConfigError
from lillama.run.logger.wandb import WandbLogger
from tests.conftest import composed

NAMES = (
    "LILLAMA_CACHE",
    "WANDB_MODE",
    "WANDB_DIR",
    "HF_HOME",
    "HF_HUB_OFFLINE",
    "TRANSFORMERS_CACHE",
    "XDG_CACHE_HOME",
)


def test_empty_ones_are_removed_before_a_library_reads_them(monkeypatch):
    for name in NAMES:
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("HF_TOKEN", "kept")
    monkeypatch.setenv("OTHER", "")
    set_up()
    assert not set(NAMES) & set(os.environ)
    assert (os.environ["HF_TOKEN"], os.environ["OTHER"]) == ("kept", "")


@pytest.mark.parametrize(("value", "given"), [("x", "x"), ("", "default"), (None, "default")])
def test_the_default_stands_for_an_empty_one(value, given, monkeypatch):
    if value is not None:
        monkeypatch.setenv("LILLAMA_X", value)
    assert variable("LILLAMA_X", "default") == given
    if value is None:
        with pytest.raises(ConfigError, match="LILLAMA_X is not set"):
            variable("LILLAMA_X")


@pytest.mark.parametrize("value", ["", None])
def test_data_below_a_folder_that_is_not_named_are_not_looked_for_below_the_root(value, monkeypatch):
    monkeypatch.delenv("LILLAMA_DATA", raising=False)
    if value is not None:
        monkeypatch.setenv("LILLAMA_DATA", value)
    with pytest.raises(InterpolationResolutionError, match="LILLAMA_DATA is not set"):
        composed("data=local_encyclopaedia")


def test_no_configuration_reads_the_environment_in_another_way():
    from lillama.config.compose import CONF, EXPERIMENTS

    files = [*CONF.rglob("*.yaml"), *EXPERIMENTS.rglob("*.yaml")]
    assert [file.name for file in files if "oc.env" in file.read_text()] == []
    assert OmegaConf.has_resolver("env")


@pytest.mark.parametrize(("key", "mode"), [("", "offline"), ("0" * 40, "online")])
def test_an_empty_mode_of_wandb_is_none(key, mode, monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_MODE", "")
    monkeypatch.setenv("NETRC", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_API_KEY", key)
    asked = []
    monkeypatch.setattr(wandb, "init", lambda **options: asked.append(options["mode"]) or MagicMock())
    WandbLogger(LoggerConfig(), tmp_path, group="g", settings={})
    assert asked == [mode]

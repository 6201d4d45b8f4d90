"""A run's config.yaml composes the run again: every group, every value."""

import re

import pytest
import yaml

from lillama.config import compose
from lillama.config.replay import replayed
from lillama.config.schemas import plain
from lillama.core.errors import ConfigError
from lillama.core.results import read_json
from lillama.run.command_line import chosen
from tests.conftest import TINY_RUN, composed

WAYS = {
    "tiny": TINY_RUN,
    "paper": ("preset=paper", "model=phi2"),
    "lists": ("preset=recommended", "data.parts.code.share=0.5", "model.targets.exclude=[q_proj,'o*']"),
    "marks": ("model=tiny_t5", "+model.architecture.dropout_rate=0.2", "name='it\\'s: a,b = [name] \\\\'"),
    "less": ("model=tiny_random", "~model.architecture.num_key_value_heads"),
    "experiment": ("experiments=tiny/ask_sizes", "strategy.reduction=0.3", "stages=[plan,init,domains]"),
}


@pytest.mark.parametrize("way", WAYS)
def test_it_composes_what_was_run(way, tmp_path):
    choices = compose.composed(WAYS[way], with_hydra=True).hydra.runtime.choices
    config = composed(*WAYS[way])
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump({"choices": chosen(choices), **plain(config)}))
    assert plain(composed(*replayed(["--config", str(file)]))) == plain(config)


def test_the_command_line_replays_a_run(cli, tmp_path):
    words = (*TINY_RUN, "stages=[plan]", "strategy.reduction=0.15")
    assert cli(*words, f"hydra.run.dir={tmp_path / 'one'}")[0] == 0
    again = (f"--config={tmp_path / 'one' / 'config.yaml'}", f"hydra.run.dir={tmp_path / 'two'}")
    assert cli(*again)[0] == 0
    assert cli(*again[:1], "strategy.reduction=0.3", f"hydra.run.dir={tmp_path / 'three'}")[0] == 0
    one, two, three = (read_json(tmp_path / name / "results.json") for name in ("one", "two", "three"))
    assert one["fingerprint"] == two["fingerprint"] != three["fingerprint"]
    assert one["choices"] == two["choices"]
    assert three["settings"]["strategy"]["reduction"] == 0.3, "what is said beside it counts"


@pytest.mark.parametrize(
    ("text", "said"), [(None, "cannot be read"), ("a: [", "cannot be read"), ("a: 1", "is no config.yaml of a run")]
)
def test_what_is_no_configuration_of_a_run_is_named(text, said, tmp_path):
    file = tmp_path / "config.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ConfigError, match=re.escape(f"--config={file}: {said}")):
        replayed([f"--config={file}"])
    with pytest.raises(ConfigError, match="name the config"):
        replayed(["progress=false", "--config"])

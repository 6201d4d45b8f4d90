"""What the tests compose from parts that are kept is what Hydra composes."""

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from tests.composing import PARTS
from tests.conftest import ROOT


def made(folder, *words):
    GlobalHydra.instance().clear()
    with initialize_config_dir(version_base="1.3", config_dir=str(folder)):
        return OmegaConf.to_yaml(compose("config", overrides=list(words), return_hydra_config=True))


def test_parts_come_together_as_in_hydra(monkeypatch):
    words = (
        "experiments=small/table10_strategies",
        "strategy=spectrum",
        "strategy.floor=0.3",
        "+hydra.job.x=1",
    )
    first, again = made(ROOT / "conf", *words), made(ROOT / "conf", *words)
    other = made(ROOT / "conf", *words, "strategy.floor=0.4")
    for owner, name, _ in PARTS:
        monkeypatch.setattr(owner, name, getattr(owner, name).__wrapped__)
    assert first == again == made(ROOT / "conf", *words)
    assert other != first


def test_a_changed_file_is_read_again(tmp_path):
    (tmp_path / "config.yaml").write_text("defaults: [_self_, kind: one]\nx: 1\n")
    (tmp_path / "kind").mkdir()
    for option in ("one", "two"):
        (tmp_path / "kind" / f"{option}.yaml").write_text(f"name: {option}\n")
    assert "name: one" in made(tmp_path)
    assert "name: two" in made(tmp_path, "kind=two")
    (tmp_path / "kind" / "one.yaml").write_text("name: other\n")
    assert "name: other" in made(tmp_path)
    (tmp_path / "kind" / "one.yaml").unlink()
    with pytest.raises(Exception, match="kind/one"):
        made(tmp_path)

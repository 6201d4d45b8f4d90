"""Shapes of the paper's models, each made once."""

import pytest

from lillama.model.load import meta_model
from lillama.model.targets import model_shape


@pytest.fixture(scope="session")
def model_shapes(tmp_path_factory):
    """The shape of a configured model, on the meta device."""
    known = {}

    def shape(config):
        if config.name not in known:
            known[config.name] = model_shape(meta_model(config, tmp_path_factory.mktemp("cache")), config.targets)
        return known[config.name]

    return shape

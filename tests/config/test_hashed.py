"""A field says itself whether a result depends on it."""

from dataclasses import fields

import pytest

from lillama.config.hashed import CONTENT, KEY, LEFT_OUT
from lillama.config.option import SCHEMAS
from lillama.config.schemas import hashed_values, plain
from tests.conftest import composed

# Every field that no result depends on: one more belongs here only if it changes no figure but to rounding.
NO_EFFECT = {
    "RunConfig": {
        *("name", "scale", "ranks", "cache_dir", "cache_limit_gb", "progress", "save_checkpoint", "reuse", "logger"),
        *("snapshot", "parallel"),
    },
    "ModelConfig": {"offload"},
    "DistillConfig": {"micro_batch", "on_oom", "merge", "compile"},
    "BlockwiseConfig": {"place"},
    "FinetuneConfig": {"micro_batch", "activation_checkpointing"},
}


def marked(schema, mark):
    return {field.name for field in fields(schema) if field.metadata.get(KEY) == mark}


@pytest.mark.parametrize(
    "schema", [one for own in SCHEMAS.values() for one in own.values()], ids=lambda one: one.__name__
)
def test_what_is_left_out_is_known(schema):
    assert marked(schema, LEFT_OUT) == NO_EFFECT.get(schema.__name__, set())
    assert marked(schema, CONTENT) <= {"path", "name", "tasks_dir", "baseline"}


def test_places_are_null_and_what_has_no_effect_is_gone():
    config = composed("data=local", "data.path=somewhere", "distill/schedule=blockwise")
    whole, hashed = plain(config), hashed_values(config)
    assert whole["data"]["path"] == "somewhere"
    assert hashed["data"] == {**whole["data"], "path": None}
    assert set(whole) - set(hashed) == NO_EFFECT["RunConfig"]
    assert set(whole["distill"]["schedule"]) - set(hashed["distill"]["schedule"]) == {"place"}

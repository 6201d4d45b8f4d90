"""Names of the Hub that it does not have, or cannot be asked for."""

import httpx
import pytest
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import RepositoryNotFoundError

import lillama.core.hub
from lillama.core.errors import ConfigError
from lillama.core.hub import offline
from tests.conftest import TINY_RUN

HUB = [word for word in TINY_RUN if not word.startswith("model=")]


@pytest.fixture
def answers(monkeypatch):
    """What the Hub answers, and how often it was asked."""
    held = {"error": None, "asked": []}

    def repo_info(self, repo, **options):
        held["asked"].append((repo, options["repo_type"], options["revision"]))
        if held["error"] is not None:
            raise held["error"]

    monkeypatch.setattr(HfApi, "repo_info", repo_info)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    lillama.core.hub._asked.cache_clear()
    yield held
    lillama.core.hub._asked.cache_clear()


def missing():
    response = httpx.Response(404, request=httpx.Request("GET", "https://hub"))
    return RepositoryNotFoundError("404 Client Error", response=response)


def test_a_model_that_the_hub_does_not_have_is_one_line_after_one_question(answers, cli, tmp_path):
    answers["error"] = missing()
    status, _, err = cli(*HUB, "model=hub", "model.path=nosuch/model", f"hydra.run.dir={tmp_path}")
    assert status == 2
    assert "error: model.path=nosuch/model: no such file or folder, and the Hub has no model of this name" in err
    assert "Client Error" not in err
    assert answers["asked"] == [("nosuch/model", "model", None)]


def test_without_the_hub_only_what_was_downloaded_is_looked_for(answers, cli, tmp_path):
    answers["error"] = httpx.ConnectError("Name or service not known")
    status, _, err = cli(*HUB, "model=hub", "model.path=nosuch/model", f"hydra.run.dir={tmp_path}")
    assert status == 2
    assert "model.path=nosuch/model: not here, not downloaded before, and the Hub does not answer" in err
    assert "Retrying" not in err


def test_a_tokenizer_is_named_as_one(answers, cli, tmp_path):
    answers["error"] = missing()
    words = (*TINY_RUN, "model.tokenizer=nosuch/tokenizer", f"hydra.run.dir={tmp_path}")
    status, _, err = cli(*words)
    assert status == 2
    assert "model.tokenizer=nosuch/tokenizer" in err


def test_a_revision_and_a_dataset_are_asked_for_as_such(answers):
    assert not offline("a/b", "data.path", kind="dataset", revision="v1")
    assert answers["asked"] == [("a/b", "dataset", "v1")]
    lillama.core.hub._asked.cache_clear()
    answers["error"] = missing()
    with pytest.raises(ConfigError, match=r"data\.path=a/b: .* has no dataset of this name and revision v1"):
        offline("a/b", "data.path", kind="dataset", revision="v1")


def test_a_name_that_can_be_none_and_a_user_who_wants_no_network(monkeypatch):
    with pytest.raises(ConfigError, match=r"model\.path=no such: .* no name that the Hub could have"):
        offline("no such", "model.path")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    lillama.core.hub._asked.cache_clear()
    assert offline("a/b", "model.path")

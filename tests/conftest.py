"""What the tests share: a tiny model, its tokenizer, tokens, composed configurations, the command line in-process."""

import gc
import os
import pickle
import signal
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import ClassVar

import hypothesis
import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.hydra import Hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import DictConfig

from lillama.config import ModelConfig, RunConfig, Weights
from lillama.data.tokens import TokenBlocks
from lillama.model.byte_tokenizer import byte_tokenizer
from lillama.model.source import ModelSource
from lillama.run.command_line import CommandLine, set_up, typed
from lillama.run.fingerprint import run_fingerprint
from lillama.run.run import Run
from tests.composing import from_parts

ROOT = Path(__file__).resolve().parent.parent
TINY_LLAMA = {
    "model_type": "llama",
    "vocab_size": 260,
    "hidden_size": 48,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,  # activations far from zero, so that errors show
}
# A run of seconds: every path of the real one on a random model.
TINY_RUN = (
    "preset=local",
    "model=tiny_random",
    "strategy=bottom",
    "strategy.k=8",
    "strategy.m=4",
    "data.tokens=1024",
    "data.seq_len=64",
    "evaluate.perplexity.max_tokens=512",
    "evaluate.perplexity.seq_len=64",
    "progress=false",
    "logger=csv",
)
LONGEST = (
    "test_real_model",
    "test_tiny_others",
    "test_torchrun",
    "slurm",
    "test_tiny_tables",
    "test_kills",
    "test_pipeline",
    "test_compose",
    "test_sizes",
    "test_logits",
    "test_fresh_process",
    "test_command_line",
    "test_joblib",
)
set_up()
# The processes that tests start share what the first of them compiled, or each would compile all it imports.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# One thread each: most tests are too small for more, and an OpenMP pool does not survive the forks that some begin.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell that starts the tests in the background has them, and whatever they start, ignore Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)


# An example that takes long says nothing of the code: a machine may be busy.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


@pytest.fixture(scope="session", autouse=True)
def quick_compositions() -> Iterator[None]:
    with from_parts():
        yield


@pytest.fixture(scope="session", autouse=True)
def one_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Every test's cache, unless the environment names one (a real model's import is worth keeping).

    The index of the harness's tasks, which takes ten seconds to make, is all workers' one.
    """
    cache, base = tmp_path_factory.mktemp("cache"), tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    for kind in ("harness", "locks"):
        (shared / kind).mkdir(exist_ok=True)
        (cache / kind).symlink_to(shared / kind)
    os.environ.setdefault("LILLAMA_CACHE", str(cache))
    os.environ["WANDB_MODE"] = "offline"
    os.environ["HF_EVALUATE_OFFLINE"] = "1"  # or the harness asks a Hub that is not there, and waits, for a metric
    yield


@pytest.fixture
def tiny_config() -> ModelConfig:
    return ModelConfig(name="tiny", weights=Weights.random, architecture=dict(TINY_LLAMA), device="cpu")


@pytest.fixture
def tiny_model(tiny_config: ModelConfig, tmp_path: Path) -> torch.nn.Module:
    return ModelSource(tiny_config, tmp_path).load(seed=0)


@pytest.fixture
def tokenizer():
    return byte_tokenizer()


def random_tokens(count: int = 8, length: int = 32, seed: int = 0) -> TokenBlocks:
    ids = np.random.default_rng(seed).integers(4, 260, (count, length)).astype(np.int32)
    return TokenBlocks(ids, np.full(count, length, np.int32))


@pytest.fixture
def tokens() -> TokenBlocks:
    return random_tokens()


def composed(*overrides: str) -> RunConfig:
    """A configuration as the command line would make it; of the same words in the same environment, made once."""
    return pickle.loads(_composed(overrides, surroundings()))


def fingerprint(config: RunConfig) -> str:
    """Hash what a run's figures depend on."""
    return run_fingerprint(Run.of(config))


@cache
def _composed(overrides: tuple[str, ...], around: object) -> bytes:
    GlobalHydra.instance().clear()
    with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
        # Folder names come from Hydra's own node, which a composition in tests does not have.
        return pickle.dumps(typed(compose("config", overrides=list(overrides))))


def surroundings() -> tuple[object, ...]:
    """What a composition may depend on beside its words."""
    environment = ((key, value) for key, value in os.environ.items() if key != "PYTEST_CURRENT_TEST")
    return Path.cwd(), *sorted(environment)


class ComposedOnce(ConfigLoaderImpl):
    """Hydra's composition; of the same words in the same surroundings, made once: a sweep asks twice for each cell."""

    known: ClassVar[OrderedDict[object, bytes]] = OrderedDict()

    def load_configuration(
        self, config_name: str | None, overrides: list[str], run_mode: RunMode, *args: bool, **options: bool
    ) -> DictConfig:
        words = (config_name, tuple(overrides), run_mode, args, tuple(sorted(options.items())))
        key = (words, str(self.config_search_path), surroundings())
        if key not in self.known:
            made = super().load_configuration(config_name, overrides, run_mode, *args, **options)
            self.known[key] = pickle.dumps(made)
            if len(self.known) > 32:
                self.known.popitem(last=False)
        return pickle.loads(self.known[key])


@cache
def mode_of(words: tuple[str, ...]) -> RunMode | None:
    """``hydra.mode``: of a command line Hydra composes all of it for this alone, and then once more to run it."""
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
            return compose("config", overrides=list(words), return_hydra_config=True).hydra.mode
    except Exception:  # noqa: BLE001 - as Hydra does: what is wrong is told by the composition that runs
        return None


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """``python run.py ...`` in this process: exit status, standard output and standard error."""
    monkeypatch.syspath_prepend(str(ROOT))
    import run

    def call(*words: str) -> tuple[int, str, str]:
        mode = mode_of(tuple(word for word in words if word.startswith(("experiments=", "hydra.mode="))))
        monkeypatch.setattr(Hydra, "get_mode", lambda *_, **__: mode)
        monkeypatch.setattr("hydra._internal.hydra.ConfigLoaderImpl", ComposedOnce)
        GlobalHydra.instance().clear()
        if "absl.logging" in sys.modules:
            # Hydra's set-up of logging closes all handlers. The one of absl (lm_eval imports it) closes its stream too,
            # which is the file of pytest's own capture: every later test of this process would fail.
            sys.modules["absl.logging"].get_absl_handler().python_handler.stream = sys.__stderr__
        monkeypatch.setattr(sys, "argv", ["run.py", *words])
        monkeypatch.setattr(run, "command_line", CommandLine())
        capsys.readouterr()
        try:
            status = run.command_line.exit_status(run.main)
        except SystemExit as leave:
            status = int(leave.code or 0)
        out, err = capsys.readouterr()
        return status, out, err

    return call


@pytest.fixture(scope="module", autouse=True)
def settled() -> Iterator[None]:
    """Garbage collection looks at nothing older than the file of tests: that took a third of their time."""
    gc.collect()
    gc.freeze()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gc, "unfreeze", lambda: None)  # a measurement of throughput ends with it
        yield


def pytest_collection_finish() -> None:
    """Collect garbage again, which ``tests/__init__.py`` has put off."""
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that the last of them does not run alone."""
    items.sort(key=lambda item: next((n for n, name in enumerate(LONGEST) if name in item.nodeid), len(LONGEST)))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real texts; absent, a test that needs it is skipped, but in CI that is a failure."""
    folder = Path(os.environ.get("LILLAMA_DATA", "/nonexistent"))
    if not folder.is_dir():
        reason = "LILLAMA_DATA names no folder with the real texts"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    return folder

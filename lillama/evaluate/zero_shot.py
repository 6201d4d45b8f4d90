"""Zero-shot (and few-shot) tasks by lm-evaluation-harness, a library call; every finished task is kept by content."""

import importlib.metadata
import json
import logging
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from lillama.config import ZeroShotConfig
from lillama.core.cache import Cache
from lillama.core.errors import ConfigError, DivergedError
from lillama.core.provenance import digest
from lillama.evaluate.measure import Figures, Given, Measure
from lillama.evaluate.scores import Results, mean_of, recovery, scores_of
from lillama.evaluate.tasks import KEY, Tasks, harness_tasks, quiet_harness, shots_of
from lillama.model.identity import tokenizer_digest, weights_digest
from lillama.model.limits import model_limits

log = logging.getLogger(__name__)
HARNESS = "lm-eval"
KIND = "scores"
SEED = 1234  # the harness's own, for the choice of examples
ON_CPU = 8  # sequences at a time; on a GPU the harness finds how many fit
GENERATES, GENERATED = "generate_until", 256  # such a task's kind, and how many tokens where it says nothing


@dataclass(frozen=True, slots=True)
class ZeroShot(Measure):
    """``stages=[zero_shot]``; what the cache has of a model is not asked again."""

    config: ZeroShotConfig
    tokenizer: Any
    tasks: Tasks
    cache: Cache
    progress: bool

    @classmethod
    def read(cls, given: Given) -> "ZeroShot":
        """Read the tasks, and compare the texts that they have written with the model's positions."""
        config = given.config.zero_shot
        if config.chat_template and not getattr(given.tokenizer, "chat_template", None):
            raise ConfigError(f"{KEY}.chat_template=true: the model's tokenizer has none")
        tasks = harness_tasks(config, given.config.tasks_dir, given.cache)
        check_generation(given.model, tasks)
        return cls(config, given.tokenizer, tasks, given.cache, given.progress)

    def measure(self, model: nn.Module, *, dense: Figures | None, note: Callable[[Figures], None]) -> Figures:
        """Score the model; beside a dense one, with what it has kept of that one's scores."""
        found = zero_shot(
            model,
            self.tokenizer,
            self.tasks,
            self.config,
            cache=self.cache,
            on_task=note,
            progress=self.progress,
        )
        return found if dense is None else found | {"recovery": recovery(dense, found)}


def zero_shot(
    model: Any,
    tokenizer: Any,
    tasks: Tasks,
    config: ZeroShotConfig,
    *,
    cache: Cache | None = None,
    on_task: Callable[[dict[str, Any]], None] = lambda figures: None,
    progress: bool = False,
) -> dict[str, Any]:
    """Score a model; what the cache has of it is not asked again.

    :param tasks: from :func:`lillama.evaluate.tasks.harness_tasks`.
    :param cache: finished tasks, by weights, tokenizer, questions, version and options; None: nothing is kept.
    :param on_task: told of the figures so far after every task.
    :return: ``tasks`` with a score each, their ``mean``, the ``harness`` version and the options.
    :raises DivergedError: for a score that is not finite.
    """
    book = _Book(model, tokenizer, tasks, config, cache)
    harness = _Harness(model, tokenizer, config, progress=progress)
    found: dict[str, Results] = {}
    figures: dict[str, Any] = {"harness": version(), "limit": config.limit, "chat_template": config.chat_template}
    for number, (name, task) in enumerate(tasks.leaves.items(), 1):
        results = book.read(name)
        if results is None:
            log.info("zero-shot: %s (%d of %d)", name, number, len(tasks.leaves))
            results = harness.score(task)
            book.write(name, results)
        else:
            log.info("zero-shot: %s is done already (%d of %d)", name, number, len(tasks.leaves))
        found[name] = results
        figures["tasks"] = scores_of(tasks, config, found)
        on_task(figures)
    return figures | {"mean": mean_of(figures["tasks"])}


def version() -> str:
    """Return the harness's version."""
    return importlib.metadata.version(HARNESS)


class _Harness:
    """The model as the harness sees it, made when the first task is asked."""

    def __init__(self, model: Any, tokenizer: Any, config: ZeroShotConfig, *, progress: bool) -> None:
        self.model, self.tokenizer, self.config, self.progress = model, tokenizer, config, progress
        self._lm: Any = None

    def score(self, task: Any) -> Results:
        """Score one task by the harness; ``seconds`` is how long it took.

        The harness's ``simple_evaluate`` would also list the machine's packages, after every task.
        """
        import lm_eval

        began, config, name = time.perf_counter(), self.config, task.task_name
        task.set_config(key="num_fewshot", value=shots_of(task.config.to_dict(), config.num_fewshot))
        task.set_fewshot_seed(seed=SEED)
        with quiet_harness():
            found: Any = lm_eval.evaluate(
                lm=self._wrapped(),
                task_dict={"tasks": {name: task}},
                limit=config.limit,
                apply_chat_template=config.chat_template,
                system_instruction=config.system,
                log_samples=False,
            )
        numbers = {key: value for key, value in found["results"][name].items() if isinstance(value, int | float)}
        asked = {"documents": found["n-samples"][name]["effective"], "shots": found["n-shot"][name]}
        return {**numbers, **asked, "seconds": time.perf_counter() - began}

    def _wrapped(self) -> Any:
        if self._lm is None:
            self._lm = _language_model(self.model, self.tokenizer, self.config, progress=self.progress)
        return self._lm


def _language_model(model: Any, tokenizer: Any, config: ZeroShotConfig, *, progress: bool) -> Any:
    """Return the harness's wrapper of a loaded model."""
    from lm_eval.models.huggingface import HFLM

    class Checked(HFLM):
        """Without progress bars where the run wants none, and without a score where a likelihood is not finite."""

        def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> Any:
            return super().loglikelihood(requests, disable_tqdm=disable_tqdm or not progress)

        def _loglikelihood_tokens(self, requests: Any, disable_tqdm: bool = False, **options: Any) -> Any:
            found = super()._loglikelihood_tokens(requests, disable_tqdm=disable_tqdm or not progress, **options)
            for number, (likelihood, _) in enumerate(found):
                if not math.isfinite(likelihood):
                    raise DivergedError(f"zero-shot: the log-likelihood of request {number} is {likelihood}")
            return found

        def _model_call(self, inps: Any, *rest: Any, **options: Any) -> Any:
            self._check(inps)
            return super()._model_call(inps, *rest, **options)

        def _model_generate(self, context: Any, *rest: Any, **options: Any) -> Any:
            self._check(context)
            return super()._model_generate(context, *rest, **options)

        def _check(self, ids: Any) -> None:
            """On a GPU a token outside of the table leaves a device that answers nothing any more."""
            highest = int(ids.max())
            if highest >= limits.tokens:
                said = f"a task holds token {highest}, and the model has {limits.tokens} embeddings"
                raise ConfigError(f"{KEY}: {said}; give the model's own tokenizer (model.tokenizer)")

    limits = model_limits(model)
    longest = limits.positions if limits.positions is not None and limits.positions < context_length(model) else None
    size = config.batch_size or ("auto" if model.device.type == "cuda" else ON_CPU)
    with quiet_harness():
        return Checked(pretrained=model, tokenizer=tokenizer, batch_size=size, max_length=longest)


def context_length(model: Any) -> float:
    """Return the length at which the harness cuts a text's beginning off, by the model's configuration."""
    known = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    return known or math.inf


def check_generation(model: Any, tasks: Tasks) -> None:
    """Raise a :class:`ConfigError` for a task that generates more tokens than the model has positions.

    :param model: one on the meta device will do.
    """
    positions = min(context_length(model), model_limits(model).positions or math.inf)
    for name, task in tasks.leaves.items():
        if task.OUTPUT_TYPE != GENERATES:
            continue
        wanted = (task.config.generation_kwargs or {}).get("max_gen_toks", GENERATED)
        if wanted >= positions:
            raise ConfigError(f"{KEY}.tasks: {name} generates {wanted} tokens, and the model has {positions} positions")


class _Book:
    """The finished tasks of one model with one set of options."""

    def __init__(self, model: Any, tokenizer: Any, tasks: Tasks, config: ZeroShotConfig, cache: Cache | None) -> None:
        self.tasks, self.config, self.cache = tasks, config, cache
        if cache is not None:
            options = {
                key: value for key, value in asdict(config).items() if key not in ("tasks", "metrics", "batch_size")
            }
            self._key = [version(), weights_digest(model), tokenizer_digest(tokenizer), options]

    def read(self, name: str) -> Results | None:
        """Look up the results of a task."""
        return None if self.cache is None else self.cache.read(KIND, self._entry(name), _read)

    def write(self, name: str, results: Results) -> None:
        """Keep what was found."""
        if self.cache is not None:
            self.cache.write(KIND, self._entry(name), json.dumps(results, indent=1).encode())

    def _entry(self, name: str) -> str:
        task = self.tasks.leaves[name]
        examples = shots_of(task.config.to_dict(), self.config.num_fewshot) > 0
        return digest([*self._key, name, task.VERSION, self.tasks.identity(name, examples=examples)])[:32]


def _read(file: Path) -> Results:
    return json.loads(file.read_text(encoding="utf-8"))

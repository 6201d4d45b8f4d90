"""Zero-shot (and few-shot) tasks by lm-evaluation-harness, a library call; every finished task is kept by content."""

import importlib.metadata
import json
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lillama.config import ZeroShotConfig
from lillama.core.cache import Cache
from lillama.core.errors import ConfigError, DivergedError
from lillama.core.provenance import digest
from lillama.evaluate.tasks import KEY, Tasks, quiet_harness, shots_of
from lillama.model.identity import tokenizer_digest, weights_digest
from lillama.model.limits import model_limits

log = logging.getLogger(__name__)
HARNESS = "lm-eval"
KIND = "scores"
SEED = 1234  # the harness's own, for the choice of examples
ON_CPU = 8  # sequences at a time; on a GPU the harness finds how many fit
GENERATES, GENERATED = "generate_until", 256  # such a task's kind, and how many tokens where it says nothing
PREFERRED = ("acc_norm", "acc")
Results = dict[str, Any]  # of one task, as the harness gives them: "acc,none", "acc_stderr,none", ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """One task's score: which metric, with its standard error (None where the harness has none for it).

    ``documents`` is how many questions were asked, ``seconds`` how long it took when it was scored, ``metrics`` all
    that the harness said.
    """

    score: float
    stderr: float | None
    metric: str
    version: Any
    documents: int
    shots: int
    seconds: float
    metrics: Mapping[str, float]


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
        figures["tasks"] = _scores(tasks, config, found)
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


def _scores(tasks: Tasks, config: ZeroShotConfig, found: Mapping[str, Results]) -> dict[str, Any]:
    """Return the score of every asked task, and of every group whose tasks are all done."""
    scores = {}
    for name in tasks.named:
        if name in found:
            task = tasks.leaves[name]
            scores[name] = _score(name, task.VERSION, found[name], config)
        elif name in tasks.groups:
            group = tasks.groups[name]
            members = [task.task_name for task in group.get_all_tasks()]
            if all(member in found for member in members):
                scores[name] = _group_score(name, group, {member: found[member] for member in members}, config)
    return {name: asdict(score) for name, score in scores.items()}


def _group_score(name: str, group: Any, members: Mapping[str, Results], config: ZeroShotConfig) -> Score:
    """Return a group's own score, by the harness's own aggregation."""
    own = group.aggregate(
        {member: {**results, "sample_len": results["documents"]} for member, results in members.items()}
    )
    known = {key: value for key, value in own.items() if isinstance(value, int | float)}
    sums = {key: sum(results[key] for results in members.values()) for key in ("documents", "seconds")}
    shots = max(results["shots"] for results in members.values())
    return _score(name, group.version, {**known, **sums, "shots": shots}, config)


def _score(name: str, version_: Any, results: Results, config: ZeroShotConfig) -> Score:
    metrics = {key: value for key, value in results.items() if "," in key}
    values = {key: value for key, value in metrics.items() if "_stderr," not in key}
    key = _chosen(name, list(values), config.metrics.get(name))
    if not math.isfinite(values[key]):
        raise DivergedError(f"zero-shot: {name} has a score of {values[key]}")
    metric, _, kind = key.partition(",")
    return Score(
        score=values[key],
        stderr=metrics.get(f"{metric}_stderr,{kind}"),
        metric=metric,
        version=version_,
        documents=results["documents"],
        shots=results["shots"],
        seconds=results["seconds"],
        metrics=metrics,
    )


def _chosen(name: str, keys: list[str], metric: str | None) -> str:
    """Return the key of a task's score: the metric that is asked for, or the best known of those there are."""
    for wanted in (metric,) if metric else (*PREFERRED, keys[0].partition(",")[0]):
        found = next((key for key in keys if key.partition(",")[0] == wanted), None)
        if found is not None:
            return found
    raise ConfigError(f"{KEY}.metrics.{name}={metric}: the harness gave {', '.join(keys)}")


def mean_of(scores: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the plain mean of the tasks' scores, as the paper's tables have it, and the standard error of it."""
    errors = [score["stderr"] for score in scores.values()]
    known = [error for error in errors if error is not None]
    count = len(errors)
    return {
        "score": sum(score["score"] for score in scores.values()) / count,
        "stderr": math.sqrt(sum(error**2 for error in known)) / count if len(known) == count else None,
        "tasks": count,
    }


def recovery(dense: Mapping[str, Any], compressed: Mapping[str, Any]) -> dict[str, float]:
    """Compressed over dense by task, and of the means; of tasks that the dense model scores 0 there is none."""
    pairs = {
        name: (compressed["tasks"][name], score)
        for name, score in dense["tasks"].items()
        if name in compressed["tasks"]
    }
    pairs["mean"] = (compressed["mean"], dense["mean"])
    return {name: own["score"] / base["score"] for name, (own, base) in pairs.items() if base["score"]}

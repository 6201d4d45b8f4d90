"""Hash what a result depends on: two runs with the same fingerprint give the same figures."""

from pathlib import Path

from lillama.config import MEASURES, FactorForm, PlanFileConfig, Stage, domain_key
from lillama.config.schemas import hashed_values
from lillama.core.errors import ConfigError
from lillama.core.provenance import digest, path_digest, readable_digest
from lillama.core.version import __version__
from lillama.data.mixed import data_identity
from lillama.data.sources import source_identity
from lillama.run.run import Run


def run_fingerprint(run: Run) -> str:
    """Hash a configuration, the content of the model and the texts, and the package's version.

    Fields that no result depends on say so themselves (:mod:`lillama.config.hashed`); groups that only a stage reads
    count where the stage is run.

    :raises ConfigError: where a model, a text or a plan is not there.
    """
    config = run.config
    values = hashed_values(config)
    if config.factors.form is FactorForm.plain:  # what every run was before there was another form
        del values["factors"]
    if Stage.bench not in config.stages:
        del values["bench"]
    if Stage.finetune not in config.stages:
        del values["finetune"]
    for measure in set(MEASURES) - set(config.stages):
        del values["evaluate"][measure.name]
    return digest([__version__, values, *_contents(run)])


def _contents(run: Run) -> list[str | None]:
    config, strategy = run.config, run.config.strategy
    plan = _plan_digest(strategy) if isinstance(strategy, PlanFileConfig) else None
    if set(config.stages) == {Stage.plan} and not config.calibrates:
        # An inline architecture is part of the configuration: its plan needs neither weights nor texts.
        return [plan, None if config.model.architecture else run.model.identity]
    if set(config.stages) == {Stage.plan}:
        return [plan, run.model.identity, data_identity(config.data)]
    perplexity = config.evaluate.perplexity
    texts = [data_identity(config.data), source_identity(perplexity, "evaluate.perplexity")]
    if Stage.finetune in config.stages:
        texts.append(data_identity(config.finetune_data))
    return [plan, run.model.identity, *texts, *_measured_on(run)]


def _measured_on(run: Run) -> list[str | None]:
    """List what the measuring stages read, and the dense model beside a checkpoint."""
    config, evaluate = run.config, run.config.evaluate
    tasks = (
        readable_digest(Path(evaluate.tasks_dir).expanduser(), "evaluate.tasks_dir")
        if Stage.zero_shot in config.stages and evaluate.tasks_dir
        else None
    )
    speech = source_identity(evaluate.wer, "evaluate.wer") if Stage.wer in config.stages else None
    texts = evaluate.domains.texts if Stage.domains in config.stages else {}
    domains = [source_identity(own, domain_key(name)) for name, own in texts.items()]
    return [tasks, speech, *domains, None if run.baseline is None else run.baseline.identity]


def _plan_digest(strategy: PlanFileConfig) -> str:
    file = Path(strategy.file)
    if not file.is_file():
        raise ConfigError(f"strategy.file={file}: no such file")
    return path_digest(file)

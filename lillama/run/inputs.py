"""Read all that a run needs beside weights: each when it is first asked for, and before a model is loaded."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

from lillama.config import MEASURES, DataConfig, Source, Stage
from lillama.config.option import method
from lillama.data.calibration import Calibration
from lillama.data.generated import Writer
from lillama.data.mixed import text_blocks
from lillama.data.speech import SpeechClips, speech_clips
from lillama.data.tokens import TokenBlocks
from lillama.evaluate.measure import Given, Measure
from lillama.evaluate.perplexity import MeasuredText, check_window, measured_text
from lillama.evaluate.throughput import check_lengths
from lillama.model.inputs import check_inputs
from lillama.model.limits import Limits, check_tokens, model_limits
from lillama.run.checks import READ_TEXT, check_baseline, check_calibration, check_sequences
from lillama.run.run import Run


class Inputs:
    """Reads the tokenizer, the tokens to learn from, the texts and tasks to be measured on.

    :param writer: loads the dense model, for texts that it writes itself.
    """

    def __init__(self, run: Run, writer: Writer) -> None:
        self._run = run
        self._writer = writer

    def read(self) -> None:
        """Read all that the stages need, with what costs least first.

        :raises ConfigError: for texts, tasks or sounds that are missing, unreadable, too few, longer than the model has
            positions, or of tokens that it does not know.
        """
        run, config, stages = self._run, self._run.config, self._run.stages
        if config.calibrates or Stage.finetune in stages:
            check_inputs(run.model.meta)
        check_sequences(run, self.limits)
        if Stage.throughput in stages:
            check_lengths(config.evaluate.throughput, self.limits)
        if run.baseline is not None and Stage.init not in stages:
            check_baseline(run.baseline, run.model)
        wanted = {
            "text": stages & READ_TEXT,
            "measures": True,
            "calibration": config.calibrates,
            "tuning": Stage.finetune in stages,
        }
        for name in (name for name, needed in wanted.items() if needed):
            getattr(self, name)

    @cached_property
    def limits(self) -> Limits:
        """Return the limits of the model, or where a dense one is measured beside it, of both."""
        run = self._run
        own, base = model_limits(run.model.meta), run.baseline
        if base is None or not run.config.evaluate.dense or Stage.init in run.stages:
            return own
        return own.least(model_limits(base.meta))

    @property
    def tokenizer(self) -> Any:
        """Return the model's tokenizer, or its processor."""
        return self._run.model.tokenizer

    @cached_property
    def calibration(self) -> Calibration:
        """Read the tokens or clips that the start and the distillation learn from."""
        return self._learnt_from(self._run.config.data)

    @cached_property
    def tuning(self) -> Calibration:
        """Read the tokens or clips of the fine-tuning."""
        return self._learnt_from(self._run.config.finetune_data)

    @cached_property
    def text(self) -> MeasuredText:
        """Read the text that perplexity, speed and stable ranks are measured on."""
        settings = self._run.config.evaluate.perplexity
        text = measured_text(settings, self.tokenizer)
        if Stage.perplexity in self._run.stages:
            check_window(settings, text, self.limits, settings.KEY)
        check_tokens(settings.KEY, text.ids, self.limits, self.tokenizer)
        return text

    @cached_property
    def measures(self) -> Mapping[Stage, Measure]:
        """Read what each configured measure needs."""
        run = self._run
        evaluate = run.config.evaluate
        given = Given(
            config=evaluate,
            model=run.model.meta,
            limits=self.limits,
            tokenizer=self.tokenizer,
            cache=run.cache,
            text=lambda: self.text,
            progress=run.config.progress,
        )
        alone = [stage for stage in MEASURES if stage is not Stage.throughput]  # which takes all models in turn
        wanted = [stage for stage in alone if stage in run.stages]
        return {stage: method(getattr(evaluate, stage.name)).read(given) for stage in wanted}

    def _learnt_from(self, data: DataConfig) -> Calibration:
        cache, speech = self._run.cache, data.source is Source.speech
        found: SpeechClips | TokenBlocks = (
            speech_clips(data, self.tokenizer) if speech else text_blocks(data, self.tokenizer, cache, self._writer)
        )
        check_calibration(data.KEY, found, self.limits, self.tokenizer)
        return found

"""Find a model's task and the Auto class of transformers that makes it."""

from typing import Any

from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM, AutoModelForSpeechSeq2Seq
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES,
)

from lillama.config import ModelConfig, Task

AUTO_CLASSES: dict[Task, Any] = {
    Task.causal_lm: AutoModelForCausalLM,
    Task.seq2seq_lm: AutoModelForSeq2SeqLM,
    Task.speech_seq2seq: AutoModelForSpeechSeq2Seq,
    Task.masked_lm: AutoModelForMaskedLM,
}


def task_of(config: ModelConfig, architecture: Any) -> Task:
    """Return the task that is asked for, or the one that the model's own configuration speaks of."""
    return config.task if config.task is not Task.auto else task_of_architecture(architecture)


def task_of_architecture(architecture: Any) -> Task:
    """Return the task of a transformers configuration: its saved class, else what its kind of model is for."""
    family = architecture.model_type
    saved = (architecture.architectures or [""])[0]
    if architecture.is_encoder_decoder:
        hears, reads = MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES, MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES
        of_text = family not in hears or (
            saved == reads.get(family) != hears[family]
        )  # SeamlessM4T has a class of each
        return Task.seq2seq_lm if of_text else Task.speech_seq2seq
    decodes = getattr(architecture, "is_decoder", False) or saved.endswith(("ForCausalLM", "LMHeadModel"))
    if family in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not decodes:
        return Task.masked_lm
    return Task.causal_lm

"""Turn a batch of tokens (and sound) into a model's keyword arguments, for each kind of model."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers.models.auto.modeling_auto import MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES

from lillama.core.errors import ConfigError
from lillama.model.limits import vocabulary

WHISPERS = ("num_mel_bins", "max_source_positions")  # what the sizes of its features are read from


@dataclass(frozen=True, slots=True)
class Batch:
    """Token ids [b, t] and their mask [b, t], true at real tokens (None where all are real).

    ``features`` [b, mel bins, frames] is what a speech model's encoder hears; the tokens are then the transcript.
    """

    ids: Tensor
    mask: Tensor | None = None
    features: Tensor | None = None

    @property
    def tokens(self) -> int:
        """Count the real tokens of the batch."""
        return self.ids.numel() if self.mask is None else int(self.mask.sum())

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, start: int, stop: int) -> "Batch":
        """Return the sequences from ``start`` to before ``stop``."""
        part = slice(start, stop)
        mask, features = (None if tensor is None else tensor[part] for tensor in (self.mask, self.features))
        return Batch(self.ids[part], mask, features)


@dataclass(frozen=True, slots=True)
class ModelInputs:
    """Keyword arguments of a model, and for each of its stacks which positions count (None: all)."""

    arguments: Mapping[str, Any]
    masks: tuple[Tensor | None, ...]
    targets: Tensor | None = None  # what the decoder of an encoder-decoder is to say [b, t], -100 where nothing counts

    def mask(self, stack: int | None) -> Tensor | None:
        """Return the positions that count in a stack; the embedding and the head, in none, have those of the first."""
        return self.masks[stack or 0]


def model_inputs(model: Any, batch: Batch) -> ModelInputs:
    """Return the arguments of one forward pass.

    A decoder or an encoder alone reads the tokens. An encoder-decoder for text reads the first half of every sequence
    and continues it with the second, so plain text calibrates both sides; one for speech hears the features and says
    the tokens. What is masked may be any number: a tokenizer's padding is not always one of the model's tokens.
    """
    batch = _known(model, batch)
    if batch.features is not None:
        ids, mask = _without_start(model, batch.ids, batch.mask)
        said = {"decoder_input_ids": _shifted(model, ids), "use_cache": False}
        return ModelInputs({"input_features": batch.features.to(model.dtype), **said}, (None, mask), _marked(ids, mask))
    if model.config.is_encoder_decoder:
        return _halves(model, batch)
    attention = None if batch.mask is None else batch.mask.long()
    cache = {"use_cache": False} if _takes_use_cache(model) else {}
    return ModelInputs({"input_ids": batch.ids, "attention_mask": attention, **cache}, (batch.mask,))


def check_inputs(model: Any) -> None:
    """Raise a :class:`ConfigError` for a model that reads neither tokens nor features of sound as Whisper does."""
    family, reads = model.config.model_type, getattr(model, "main_input_name", "input_ids")
    hears = MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES.get(family) == type(model).__name__
    whispers = reads == "input_features" and all(hasattr(model.config, key) for key in WHISPERS)
    if not whispers and (hears or reads != "input_ids"):
        what = "hears another kind of features than Whisper's" if hears else f"reads {reads}, not tokens"
        raise ConfigError(f"model={type(model).__name__}: {what}, which no data here has")


def _known(model: Any, batch: Batch) -> Batch:
    """Return the batch with masked ids that the model has an embedding for; those that it has stay what they are."""
    if batch.mask is None:
        return batch
    return replace(batch, ids=torch.where(batch.mask, batch.ids, batch.ids.clamp(max=vocabulary(model) - 1)))


def _takes_use_cache(model: Any) -> bool:
    """Tell whether a model keeps a cache: some families name the argument, others pass it on unnamed."""
    parameters = inspect.signature(model.forward).parameters
    passed_on = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    return "use_cache" in parameters or (passed_on and hasattr(model.config, "use_cache"))


def _halves(model: Any, batch: Batch) -> ModelInputs:
    """Source and target of an encoder-decoder: the two halves of every sequence's real tokens."""
    ids, length = batch.ids, batch.ids.shape[1]
    lengths = torch.full((len(ids),), length, device=ids.device) if batch.mask is None else batch.mask.sum(1)
    cut = (lengths + 1) // 2
    place = torch.arange((length + 1) // 2, device=ids.device)
    read = place < cut[:, None]
    write = place[: max(length // 2, 1)] < (lengths - cut)[:, None]
    shifted = (cut[:, None] + place[: max(length // 2, 1)]).clamp(max=length - 1)
    target = ids.gather(1, shifted)
    whole = batch.mask is None and length % 2 == 0
    arguments = {
        "input_ids": ids[:, : (length + 1) // 2],
        "attention_mask": read.long(),
        "decoder_input_ids": _shifted(model, target),
        "use_cache": False,
    }
    return ModelInputs(arguments, (None, None) if whole else (read, write), _marked(target, None if whole else write))


def _start(model: Any) -> int:
    known = (getattr(model.config, f"{name}_token_id", None) for name in ("decoder_start", "bos"))
    return next((token for token in known if token is not None), 0)


def _shifted(model: Any, ids: Tensor) -> Tensor:
    """Shift ``ids`` to what the decoder sees when it predicts them: the start token, then all but the last."""
    return torch.cat([torch.full_like(ids[:, :1], _start(model)), ids[:, :-1]], dim=1)


def _without_start(model: Any, ids: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return a transcript without the start token, which some tokenizers write and the decoder is given anyway."""
    if ids.shape[1] < 2 or not bool((ids[:, 0] == _start(model)).all()):
        return ids, mask
    return ids[:, 1:], None if mask is None else mask[:, 1:]


def _marked(ids: Tensor, mask: Tensor | None) -> Tensor:
    return ids if mask is None else ids.masked_fill(~mask, -100)

"""Read off a model how many tokens it knows and how many positions it has, from its shapes alone (meta device)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from lillama.core.errors import ConfigError

SIDES = ("encoder", "decoder")


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of a model.

    ``tokens`` is the number of ids that it knows. ``positions`` is the longest sequence of its only stack or of its
    encoder, ``written`` that of a decoder beside an encoder; None where positions are computed and any length goes.
    """

    tokens: int
    positions: int | None = None
    written: int | None = None
    two_stacks: bool = False

    @property
    def text(self) -> int | None:
        """The longest text of calibration and perplexity: an encoder-decoder reads its first half, writes the other."""
        if not self.two_stacks:
            return self.positions
        halves = [2 * self.positions] if self.positions is not None else []
        halves += [2 * self.written + 1] if self.written is not None else []
        return min(halves, default=None)

    def least(self, other: "Limits") -> "Limits":
        """Return the limits of two models that are fed with the same."""

        def smaller(one: int | None, two: int | None) -> int | None:
            return min((length for length in (one, two) if length is not None), default=None)

        positions, written = smaller(self.positions, other.positions), smaller(self.written, other.written)
        return Limits(min(self.tokens, other.tokens), positions, written, self.two_stacks)


def model_limits(model: Any) -> Limits:
    """Return the limits of a transformers model; one on the meta device will do.

    A table of positions is known by its number of rows, which the configuration names: learned or fixed sines, in a
    module or a buffer. Rows that a family leaves free at the beginning are no positions.
    """
    found: dict[str, list[int]] = {"": [], **{side: [] for side in SIDES}}
    for name, rows in _tables(model):
        side = next((side for side in SIDES if side in name.split(".")), "")
        found[side].append(rows)
    least = {side: min(rows, default=None) for side, rows in found.items()}
    if not model.config.is_encoder_decoder:
        every = [rows for rows in least.values() if rows is not None]
        return Limits(vocabulary(model), min(every, default=None))
    return Limits(vocabulary(model), least["encoder"], least["decoder"], two_stacks=True)


def vocabulary(model: Any) -> int:
    """Count the token ids that a model knows: the rows of its input embedding, or of a smaller head.

    :raises ConfigError: for a model without a table of tokens.
    """
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    sizes = [size for size in (_rows(end) for end in ends if end is not None) if size is not None]
    if not sizes:
        raise ConfigError(f"model={type(model).__name__}: has no input embedding of tokens")
    return min(sizes)


def _rows(module: Any) -> int | None:
    known = (getattr(module, name, None) for name in ("num_embeddings", "out_features"))
    found = next((size for size in known if size is not None), None)
    weight = vars(module).get("_parameters", {}).get("weight")
    return found if found is not None else None if weight is None else weight.shape[0]


def _tables(model: Any) -> Iterator[tuple[str, int]]:
    """Yield the tables of positions by name, with how many positions each has."""
    lengths, words = _lengths(model.config), model.get_input_embeddings()
    tied = model.all_tied_weights_keys
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and module is not words and f"{name}.weight" not in tied:
            free = _free(module)
            if not lengths.isdisjoint({module.num_embeddings, module.num_embeddings - free}):
                yield name, module.num_embeddings - free
        for own, buffer in module.named_buffers(recurse=False):
            # Position ids, causal masks and tables of sines: each has the longest length as one of its dimensions.
            if buffer.dim() > 1 and not lengths.isdisjoint(buffer.shape):
                yield f"{name}.{own}", max(lengths.intersection(buffer.shape))
        for own, value in vars(module).items():
            if isinstance(value, Tensor) and value.dim() == 2 and value.shape[0] in lengths:
                yield f"{name}.{own}", value.shape[0]


def _free(table: Any) -> int:
    """The rows at the beginning of a table that no position has: an offset, or those up to the one of padding."""
    offset = getattr(table, "offset", None)
    if isinstance(offset, int):
        return offset
    return 0 if table.padding_idx is None else table.padding_idx + 1


def _lengths(config: Any) -> set[int]:
    """Return the lengths that a configuration speaks of."""
    text = config.get_text_config(decoder=True)
    values = {**text.to_dict(), "of_family": getattr(text, "max_position_embeddings", None)}
    named = ("position", "n_ctx", "seq_len", "sequence_length", "of_family")
    return {
        value
        for key, value in values.items()
        if any(word in key for word in named) and isinstance(value, int) and not isinstance(value, bool) and value > 1
    }


def check_length(key: str, asked: int, limit: int | None) -> None:
    """Raise a :class:`ConfigError` where a sequence is longer than the model has positions (None: any length goes)."""
    if limit is not None and asked > limit:
        raise ConfigError(f"{key}={asked}: the model has positions for {limit} tokens; give at most {limit}")


def check_tokens(key: str, ids: Any, limits: Limits, tokenizer: Any) -> None:
    """Raise a :class:`ConfigError` that names a token which the model has no embedding for.

    :param ids: those of real tokens only, any shape; padding needs no embedding.
    """
    flat = ids.numpy() if isinstance(ids, Tensor) else np.asarray(ids)
    highest = int(flat.max()) if flat.size else 0
    if highest >= limits.tokens:
        known = getattr(tokenizer, "tokenizer", tokenizer)  # of a processor, its tokenizer
        word = known.convert_ids_to_tokens(highest)
        raise ConfigError(
            f"{key}: the tokenizer writes token {highest} ({word!r}), and the model has {limits.tokens} embeddings;"
            " give the model's own tokenizer (model.tokenizer), or leave the token out of the text"
        )

"""A tiny GGUF file, whole or not."""

from pathlib import Path

import numpy as np
import pytest

from lillama.model.byte_tokenizer import byte_tokenizer

HIDDEN, INNER, BLOCKS, WORDS, PAIR = 32, 48, 2, 260, 16


def write_gguf(file: Path, *, without: str | None = None, parts: int = 1, **more: np.ndarray) -> Path:
    """A two-block Llama with random weights.

    :param without: a tensor to leave out. :param parts: how many the file says it is one of. :param more: further
        tensors, by name with ``__`` for a dot.
    """
    gguf = pytest.importorskip("gguf", reason="gguf is not installed")
    writer = gguf.GGUFWriter(str(file), "llama")
    writer.add_name("tiny")
    for key, value in {
        "context_length": 64,
        "embedding_length": HIDDEN,
        "block_count": BLOCKS,
        "feed_forward_length": INNER,
        "head_count": 4,
        "head_count_kv": 2,
        "rope_dimension_count": 8,
        "vocab_size": WORDS,
    }.items():
        getattr(writer, f"add_{key}")(value)
    writer.add_layer_norm_rms_eps(1e-5)
    known = byte_tokenizer().get_vocab()
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([*sorted(known, key=known.__getitem__)[:-1], "ab"])
    writer.add_token_types([3] * 4 + [1] * (WORDS - 4))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    if parts > 1:
        writer.add_uint16("split.count", parts)
    tensors = _tensors() | {name.replace("__", "."): value for name, value in more.items()}
    for name, value in tensors.items():
        if name != without:
            writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _tensors() -> dict[str, np.ndarray]:
    shapes = {"token_embd": (WORDS, HIDDEN), "output_norm": (HIDDEN,)}
    for block in range(BLOCKS):
        own = {"attn_norm": (HIDDEN,), "ffn_norm": (HIDDEN,), "attn_q": (HIDDEN, HIDDEN), "attn_k": (PAIR, HIDDEN)}
        own |= {"attn_v": (PAIR, HIDDEN), "attn_output": (HIDDEN, HIDDEN), "ffn_gate": (INNER, HIDDEN)}
        own |= {"ffn_up": (INNER, HIDDEN), "ffn_down": (HIDDEN, INNER)}
        shapes |= {f"blk.{block}.{name}": shape for name, shape in own.items()}
    generator = np.random.default_rng(0)
    return {f"{name}.weight": generator.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}

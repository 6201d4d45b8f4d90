"""The model cards of checkpoints: of a compressed one, of one that was fine-tuned as it came."""

from pathlib import Path
from typing import Any


def model_card(result: dict[str, Any], auto: str = "AutoModelForCausalLM") -> str:
    """README.md of a checkpoint, from the run's own figures; what was not measured is said not to be.

    :param auto: the transformers class that loads it.
    """
    settings, parameters, reduction = result["settings"], result["parameters"], result["reduction"]
    perplexity = result["perplexity"]
    made = perplexity.get("finetuned", perplexity.get("end"))
    rows = [
        ("parameters", f"{parameters['dense']:,}", f"{parameters['compressed']:,}"),
        ("perplexity", _figure(perplexity.get("dense")), _figure(made)),
    ]
    table = "\n".join(f"| {name} | {dense} | {compressed} |" for name, dense, compressed in rows)
    base = _public(settings["model"]["path"]) or settings["model"]["name"]
    return f"""---
library_name: transformers
tags: [lillama, low-rank, compression]
---
# {_public(settings["model"]["name"])}, {reduction["realised"]:.1%} smaller

`{base}` with {result["matrices"]} matrices in {result["blocks"]} blocks replaced by low-rank factors{_learnt(result)},
by Lillama (arXiv 2412.16719).

| | dense | compressed |
| --- | --- | --- |
{table}

{_text(settings["evaluate"]["perplexity"]) if perplexity else "No perplexity was measured."}
The ranks are in `plan.json`; how the model was made is in the run's `results.json`.

```python
from transformers import {auto}

model = {auto}.from_pretrained("FOLDER", trust_remote_code=True)  # or, without the flag, after `import lillama`
```

`model.dequantize()` gives a plain dense model, for tools that know no factors.
"""


def tuned_card(result: dict[str, Any], auto: str, *, compressed: bool) -> str:
    """README.md of a model that was fine-tuned as it came; :func:`model_card` is that of one made smaller first.

    :param compressed: whether it is in low-rank factors.
    """
    settings, perplexity = result["settings"], result["perplexity"]
    base = _public(settings["model"]["path"]) or settings["model"]["name"]
    before = perplexity.get("end" if compressed else "dense")
    rows = [("before", _figure(before)), ("after", _figure(perplexity.get("finetuned")))]
    load = "trust_remote_code=True)  # or, without the flag, after `import lillama`" if compressed else ")"
    table = "\n".join(f"| {name} | {figure} |" for name, figure in rows)
    return f"""---
library_name: transformers
tags: {"[lillama, low-rank, compression]" if compressed else "[lillama]"}
---
# {_public(settings["model"]["name"])}, fine-tuned

`{base}`, {_tuned(result).removeprefix(", then ")}, by Lillama (arXiv 2412.16719).

| | perplexity |
| --- | --- |
{table}

{_text(settings["evaluate"]["perplexity"]) if perplexity else "No perplexity was measured."}

```python
from transformers import {auto}

model = {auto}.from_pretrained("FOLDER"{", " if compressed else ""}{load}
```
"""


def _learnt(result: dict[str, Any]) -> str:
    """Describe what the factors were made and learnt from: only the stages that were run."""
    calibrated, distilled = result["data"].get("tokens"), result["tokens"]
    made = f" made from {calibrated:,} calibration tokens" if calibrated else ""
    local = f" and distilled block by block on {distilled:,} tokens" if distilled else ""
    return f"{made}{local}{_tuned(result)}"


def _tuned(result: dict[str, Any]) -> str:
    """Describe the fine-tuning, where there was one."""
    found = result["finetune"]
    if not found:
        return ""
    settings = result["settings"]["finetune"]
    what = {"all": "whole", "factors": "in its factors", "lora": "by LoRA"}[settings["train"]]
    loss = " on the dense model's logits" if settings["objective"] == "kl" else ""
    return f", then fine-tuned {what}{loss} on {found['tokens']:,} tokens"


def _text(measured: dict[str, Any]) -> str:
    """Describe the text of the perplexity."""
    text = f"`{measured['source']}` text ({_public(measured['path']) or measured['split']})"
    return f"Perplexity on {text}, windows of {measured['seq_len']} tokens, {_cut(measured['max_tokens'])}."


def _public(path: str | None) -> str | None:
    """Return a path as a card may show it: of a place on this machine, the name only."""
    return Path(path).name if path is not None and Path(path).expanduser().exists() else path


def _figure(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.2f}"


def _cut(tokens: int | None) -> str:
    return "the whole text" if tokens is None else f"the first {tokens:,} tokens"

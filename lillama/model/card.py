"""The model card of a compressed checkpoint."""

from typing import Any


def model_card(result: dict[str, Any]) -> str:
    """README.md of a checkpoint, from the run's own figures; what was not measured is said not to be."""
    settings, parameters, reduction = result["settings"], result["parameters"], result["reduction"]
    perplexity = result["perplexity"]
    measured = settings["evaluate"]["perplexity"]
    rows = [
        ("parameters", f"{parameters['dense']:,}", f"{parameters['compressed']:,}"),
        ("perplexity", _figure(perplexity.get("dense")), _figure(perplexity.get("end"))),
    ]
    table = "\n".join(f"| {name} | {dense} | {compressed} |" for name, dense, compressed in rows)
    base = settings["model"]["path"] or settings["model"]["name"]
    return f"""---
library_name: transformers
tags: [lillama, low-rank, compression]
---
# {settings["model"]["name"]}, {reduction["realised"]:.1%} smaller

`{base}` with {result["matrices"]} matrices in {result["blocks"]} blocks replaced by low-rank factors and distilled
block by block on {result["tokens"]:,} calibration tokens, by Lillama (arXiv 2412.16719).

| | dense | compressed |
| --- | --- | --- |
{table}

Perplexity on `{measured["source"]}` text ({measured["path"] or measured["split"]}), windows of
{measured["seq_len"]} tokens, {_cut(measured["max_tokens"])}.
The ranks are in `plan.json`; how the model was made is in the run's `results.json`.

```python
import lillama  # makes transformers know the format
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("FOLDER")
tokenizer = AutoTokenizer.from_pretrained("FOLDER")
```
"""


def _figure(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.2f}"


def _cut(tokens: int | None) -> str:
    return "the whole text" if tokens is None else f"the first {tokens:,} tokens"

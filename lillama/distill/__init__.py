"""Local distillation: every compressed block learns its teacher's outputs; no gradient crosses a block."""

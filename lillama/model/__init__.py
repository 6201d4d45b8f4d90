"""Wrap torch.nn and transformers: blocks, target matrices, surgery, loading and checkpoints."""

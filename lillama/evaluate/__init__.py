"""Measure a model: (model, tokenizer, configuration) -> figures."""

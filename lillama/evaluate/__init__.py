"""What a model is worth: (model, tokenizer, configuration) -> figures."""

"""Pure mathematics: tensors in, tensors out. No configuration, no files, no choice of device."""

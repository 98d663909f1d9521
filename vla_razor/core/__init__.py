"""The arithmetic: pure functions on tensors, with no models, no files and no environments."""

"""The verbs about one language model."""

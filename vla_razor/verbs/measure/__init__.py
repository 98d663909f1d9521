"""The verbs that measure policies."""

"""What many runs say together: the results table, the frontier and the law on it, and the forecast from a law."""

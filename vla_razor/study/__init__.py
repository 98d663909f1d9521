"""What many runs show together: the results table, its frontier and law, and forecasts from a law."""

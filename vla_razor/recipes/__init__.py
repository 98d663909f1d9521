"""One file a verb, read top to bottom: `run(config, run)`."""

"""How a policy learns: a file an algorithm, each of which gives batches and a loss to `fit`."""

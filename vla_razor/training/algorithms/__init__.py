"""How a policy learns: one file per algorithm, which gives `fit` its batches and its loss."""

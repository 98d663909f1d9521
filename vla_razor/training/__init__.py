"""Fine-tuning: one loop (`fit`) for all `algorithms/`, and the `penalties/` that they share."""

"""A policy times environments gives episodes: start states, batched rollouts, demonstrations, probe sets."""

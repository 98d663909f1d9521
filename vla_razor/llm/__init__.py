"""Language models: the paper's math, science and tool-use experiments on TRL and lm-eval (RL's Razor, Appendix B.1)."""

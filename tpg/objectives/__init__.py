"""Objectives: log-probabilities and weights in, a loss for every token out. Pure, with gradient."""

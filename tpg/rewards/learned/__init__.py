"""Reward models that were learned: sequence classifiers, token-level models, implicit rewards."""

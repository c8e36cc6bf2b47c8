"""Estimators: response-level rewards in, a weight for every response token out. Pure and without gradient."""

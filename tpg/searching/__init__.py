"""Searches: trials of an experiment in an Optuna study, from a definition to its best overrides."""

"""Policies: Hugging Face causal language models, their adapters and their log-probabilities."""

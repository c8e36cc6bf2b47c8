"""Decoding on the policy's own weights: prompts computed once, finished rows replaced, continuations forked."""

"""Rollout engines: prefixes and a policy in, trajectories out."""

"""Stages that run one after the other: what they are, when one must run again, and how its process is led."""

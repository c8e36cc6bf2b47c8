"""Measurements side by side with other trainers; each module with a `main` is a command."""

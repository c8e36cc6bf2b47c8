"""Loggers: their options, how they are opened and closed, and what they are told."""

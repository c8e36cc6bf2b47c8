"""Runs of several processes: who starts them, how they hear of each other, and how they end."""

"""Runs side by side: found, measured, compared, and told as a page, a table and pictures."""

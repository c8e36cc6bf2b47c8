"""Response-level rewards: named terms and their weighted sum."""

"""Reward functions that take too much, or give what is no reward. Workers import this module by name."""

import numpy


def hoard(response):
    """As much memory as the response says, in one of several ways."""
    if response == "one block":
        return len(bytearray(2**29))
    if response == "a list that grows":
        grown = []
        while len(grown) < 2**25:
            grown.append([0] * 64)
        return len(grown)
    if response == "numpy":
        return float(numpy.ones(2**26).sum())
    return 1


def odd(response):
    """What is no number, or none that single precision holds."""
    return {"list": [1.0, 2.0], "none": None, "text": "1", "dict": {"reward": 1}, "huge": 1e300}.get(response, 1)

"""Reward functions as a user may write them, some of them badly. Workers import this module by name."""

import ctypes
import math
import os
import re
import time

NOT_A_FUNCTION = 7


def brevity(response):
    return -len(response)


def closeness(response, answer, difficulty, bonus=0.5, *, truncated):
    return (response == answer) * difficulty + bonus - truncated


def guess(response, answer="?"):
    return response == answer


def everything(**offered):
    return len(offered)


def only_by_position(response, /):
    return 1


def misbehave(response):
    """Do what the response says."""
    if response == "raise":
        raise LookupError("two\nlines")
    if response == "exit":
        raise SystemExit
    if response == "sleep":
        time.sleep(60)
    if response == "backtrack":
        return bool(re.fullmatch("(a+)+b", "a" * 64))
    if response == "die":
        os._exit(3)
    if response == "crash":
        ctypes.string_at(0)
    if response == "number as text":
        return "1"
    if response == "nothing":
        return None
    return {"nan": math.nan, "inf": math.inf}.get(response, 1)


def process(response):
    return os.getpid()

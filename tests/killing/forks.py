"""A process that has loaded the libraries and forks a run for each line it is told, which saves most of a short run.

A line on its standard input is JSON: `argv`, `variables` of the environment and `log`; it answers with the exit code,
negative for a signal. A child imports the package itself, as `python -m tpg.train` does.
"""

import json
import os
import runpy
import sys
from pathlib import Path

SITE = Path(__file__).parent / "site"


def main():
    """Answer until the input ends."""
    import lightning.pytorch  # noqa: F401
    import matplotlib.pyplot  # noqa: F401
    import peft  # noqa: F401
    import transformers  # noqa: F401

    assert not any(name.split(".")[0] == "tpg" for name in sys.modules)
    for line in sys.stdin:
        told = json.loads(line)
        child = os.fork()
        if not child:
            become(**told)
            return
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def become(argv, variables, log):
    """The run, up to its `sys.exit`."""
    for descriptor, path, flags in [(0, os.devnull, os.O_RDONLY), (1, log, os.O_APPEND | os.O_CREAT | os.O_WRONLY)]:
        opened = os.open(path, flags)
        os.dup2(opened, descriptor)
        os.close(opened)
    os.dup2(1, 2)
    os.environ |= {**variables, "PYTHONPATH": os.pathsep.join([str(SITE), *filter(None, [os.getenv("PYTHONPATH")])])}
    sys.path.insert(0, os.getcwd())
    sys.argv = ["tpg.train", *argv]
    runpy.run_path(str(SITE / "sitecustomize.py"))
    runpy.run_module("tpg.train", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()

"""`python -m tpg.launching.agent PARENT FOLDER COUNT`: torchrun, kept from speaking and from outliving its parent."""

import logging
import os
import signal
import sys
from pathlib import Path

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import parse_args, run

from tpg.launching.exchange import Exchange, end_with, read, write


def main() -> None:
    """Start the ranks and wait for them; how those that ended badly did is kept for the launching process to tell."""
    parent, folder, count = sys.argv[1:]
    exchange = Exchange(Path(folder))
    end_with(int(parent))
    # A scheduler signals every process of a job. The launching one asks the ranks to stop, which takes them a while.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, lambda *_: None)
    logging.disable(logging.CRITICAL)
    try:
        run(
            parse_args(
                [
                    "--standalone",
                    "--local-addr=127.0.0.1",
                    f"--nproc-per-node={count}",
                    "--signals-to-handle=SIGQUIT",
                    "--module",
                    read(exchange.job)["worker"],
                    folder,
                    str(os.getpid()),
                ]
            )
        )
    except ChildFailedError as error:
        ended = {str(rank): [failure.exitcode, failure.timestamp] for rank, failure in error.failures.items()}
        write(exchange.agent, ended)
        sys.exit(1)


if __name__ == "__main__":
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    main()

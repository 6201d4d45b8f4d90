"""Runs in forks of the test's process, which has everything imported: they begin at once."""

import os
import socket
from collections.abc import Callable
from functools import partial
from threading import RLock

from tqdm import tqdm

from lillama.pipeline import run


def fork(work: Callable[[], object]) -> int:
    """Do it in a child; its process number."""
    child = os.fork()
    if child == 0:
        # tqdm's own lock is one for all forks: a child that is killed while it holds it would stop every other.
        tqdm.set_lock(RLock())
        try:
            work()
        except BaseException:  # noqa: BLE001 - the child must end here, not in pytest
            os._exit(1)
        os._exit(0)
    return child


def status(child: int) -> int:
    """Wait for a child: its exit status, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def team(config, folder, processes: int = 2) -> list[int]:
    """The processes of one run, by rank, with the environment that torchrun gives them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(processes)}

    def member(rank: int) -> None:
        os.environ.update(place | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
        run(config, folder)

    return [fork(partial(member, rank)) for rank in range(processes)]

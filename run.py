"""The command line: ``python run.py [GROUP=OPTION ...] [KEY=VALUE ...] [-m]``; ``python run.py --help`` explains."""

import os
import sys
from pathlib import Path

if __name__ == "__main__":
    from lillama.core.preempt import leave_when_asked

    leave_when_asked()  # the imports below take seconds

os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors reach CommandLine.exit_status, which tells them in one line

import hydra
from omegaconf import DictConfig

from lillama.run.command_line import CommandLine, set_up

CONF = str(Path(__file__).resolve().parent / "conf")
set_up()
command_line = CommandLine()


@hydra.main(version_base="1.3", config_path=CONF, config_name="config")
def main(config: DictConfig) -> None:
    """Run one configuration."""
    command_line.run_job(config)


if __name__ == "__main__":
    sys.exit(command_line.exit_status(main))

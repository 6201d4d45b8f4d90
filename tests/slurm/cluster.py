"""A SLURM of one machine, for as long as a test needs it: munge, controller and node of its own on the loopback."""

import os
import re
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.waiting import wait_for

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol")
# Neither accounting nor control groups nor process tracking by the kernel: none of them is there in a container.
SLURM_CONF = """\
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CryptoType=crypto/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
MailProg=/bin/true
ProctrackType=proctrack/pgid
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
ReturnToService=2
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=spare Nodes={host} Default=YES MaxTime=INFINITE PriorityTier=1 GraceTime=60 State=UP
PartitionName=urgent Nodes={host} MaxTime=INFINITE PriorityTier=2 PreemptMode=OFF State=UP
"""


def missing() -> str | None:
    """Why there can be no cluster here; nothing where there can be one."""
    absent = [name for name in PROGRAMS if shutil.which(name) is None]
    if absent:
        return f"{', '.join(absent)}: not installed (Debian: slurm-wlm and munge)"
    return None if os.geteuid() == 0 else "a SLURM of the test's own is started by root only"


@contextmanager
def cluster() -> Iterator[None]:
    """Start it, have ``SLURM_CONF`` name it, wait until its node is idle; in the end nothing of it is left."""
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # a short path: a socket's has 107 letters at most
    before = os.environ.get("SLURM_CONF")
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        write_configuration(folder)
        os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
        stack.callback(restore, before)
        start_munge(stack, folder)
        started(stack, folder, "slurmctld", "-D", "-c")
        started(stack, folder, "slurmd", "-D")
        stack.callback(empty_queue)
        wait_for(lambda: slurm("sinfo", "-h", "-o", "%T") == "idle", "an idle node", logs_of(folder))
        yield


def empty_queue() -> None:
    """End its jobs; one that outlives its controller tries to reach it for ever."""
    slurm("scancel", "--user=root")
    wait_for(lambda: not slurm("squeue", "-h"), "an empty queue")


def slurm(*words: str) -> str:
    """What one of its commands prints; nothing where it fails."""
    return subprocess.run(words, capture_output=True, text=True, check=False, timeout=60).stdout.strip()


def write_configuration(folder: Path) -> None:
    host, (controller_port, node_port) = socket.gethostname().partition(".")[0], free_ports(2)
    text = SLURM_CONF.format(folder=folder, host=host, controller_port=controller_port, node_port=node_port)
    (folder / "slurm.conf").write_text(text)
    version = re.search(r"\d+", slurm("slurmd", "-V"))
    old = version is not None and int(version[0]) < 23  # which does not know the word
    (folder / "cgroup.conf").write_text(f"CgroupPlugin={'cgroup/v1' if old else 'disabled'}\n")
    for name in ("state", "spool"):
        (folder / name).mkdir()


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def start_munge(stack: ExitStack, folder: Path) -> None:
    """A munge with a key and a socket of its own, whatever the machine has."""
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o600)
    files = [f"--{name}-file={folder / f'munge.{name}'}" for name in ("key", "pid", "log", "seed")]
    started(stack, folder, "munged", "--foreground", "--force", f"--socket={folder / 'munge.socket'}", *files)
    wait_for((folder / "munge.socket").exists, "munge")


def started(stack: ExitStack, folder: Path, *words: str) -> None:
    with (folder / f"{words[0]}.out").open("w") as output:
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
    stack.callback(end, process)


def end(process: subprocess.Popen) -> None:
    process.terminate()
    try:
        process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def logs_of(folder: Path) -> Callable[[], str]:
    return lambda: "\n".join(path.read_text()[-1500:] for path in folder.glob("*.out"))


def restore(before: str | None) -> None:
    os.environ.pop("SLURM_CONF", None)
    if before is not None:
        os.environ["SLURM_CONF"] = before

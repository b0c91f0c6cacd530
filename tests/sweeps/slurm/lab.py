"""A real SLURM of one node in a folder: controller, node, accounting and its database, with two GPUs that are none.

Debian's packages slurm-wlm, munge, slurmdbd and mariadb-server-core (`make test-slurm` installs them); root is needed.
Nothing runs as a system service: every daemon is started here and ended by `Lab.stop`.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

SLURM_CONF = """
ClusterName=lab
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort=16817
SlurmdPort=16818
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={lab}/run/munge.sock,cred_expire=5
StateSaveLocation={lab}/spool/ctld
SlurmdSpoolDir={lab}/spool/d
SlurmctldPidFile={lab}/run/slurmctld.pid
SlurmdPidFile={lab}/run/slurmd.pid
SlurmctldLogFile={lab}/log/slurmctld.log
SlurmdLogFile={lab}/log/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
ReturnToService=2
DefMemPerCPU=500
EnforcePartLimits=ALL
MailProg=/bin/true
KillWait=3
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,sched_interval=1,bf_interval=1
GresTypes=gpu
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=16819
AccountingStoragePass={lab}/run/munge.sock
AccountingStorageTRES=gres/gpu
JobAcctGatherFrequency=0
NodeName=localhost NodeAddr=127.0.0.1 NodeHostname=localhost CPUs=8 RealMemory=16000 Gres=gpu:a40:2 State=UNKNOWN
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
PreemptExemptTime=-1
PartitionName=main Nodes=localhost Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=15
PartitionName=urgent Nodes=localhost MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""
DBD_CONF = """
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort=16819
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={lab}/run/munge.sock
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=16306
StorageUser=root
StorageLoc=slurm_acct_db
LogFile={lab}/log/slurmdbd.log
PidFile={lab}/run/slurmdbd.pid
"""
MY_CNF = """
[mariadbd]
datadir={lab}/db
socket={lab}/run/mariadb.sock
pid-file={lab}/run/mariadb.pid
log-error={lab}/log/mariadb.log
bind-address=127.0.0.1
port=16306
user=root
skip-grant-tables
innodb_buffer_pool_size=64M
innodb_log_file_size=16M
innodb_lock_wait_timeout=900
innodb_flush_log_at_trx_commit=0
performance_schema=OFF
skip-name-resolve
"""
PROGRAMS = ("slurmctld", "slurmd", "slurmdbd", "munged", "mariadbd", "sbatch")


def wait(ready: Callable[[], bool], what: str, seconds: float = 60) -> None:
    """Until it is so. Raises TimeoutError if it never is: something is broken, not slow."""
    end = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > end:
            raise TimeoutError(what)
        time.sleep(0.1)


class Lab:
    """The daemons of one cluster in `folder`; `SLURM_CONF` in the environment leads to them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._daemons: list[subprocess.Popen] = []

    def start(self) -> None:
        """All daemons, in order, until the node is idle."""
        missing = [name for name in PROGRAMS if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") is None]
        if missing or os.geteuid() != 0:
            raise RuntimeError(
                f"a SLURM for tests needs root and {', '.join(missing) or 'nothing else'}: make test-slurm"
            )
        for name in ("run", "log", "spool/ctld", "spool/d", "dev", "db"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(2):  # links to a device: plain files would leave CUDA_VISIBLE_DEVICES empty
            (self.folder / f"dev/gpu{number}").symlink_to("/dev/null")
        self._write("slurm.conf", SLURM_CONF)
        self._write("slurmdbd.conf", DBD_CONF).chmod(0o600)
        self._write("my.cnf", MY_CNF)
        self._write("gres.conf", "NodeName=localhost Name=gpu Type=a40 File={lab}/dev/gpu[0-1]\n")
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        os.environ["SLURM_CONF"] = str(self.folder / "slurm.conf")
        run = self.folder / "run"
        self._daemon(
            "munged", "--foreground", "--force", f"--key-file={key}", f"--socket={run}/munge.sock",
            f"--pid-file={run}/munge.pid", f"--log-file={self.folder}/log/munge.log", f"--seed-file={run}/munge.seed",
        )  # fmt: skip
        wait((run / "munge.sock").exists, "munged")
        self._daemon("mariadbd", f"--defaults-file={self.folder}/my.cnf")
        log = self.folder / "log/mariadb.log"
        wait(lambda: log.exists() and "ready for connections" in log.read_text(), "mariadbd")
        self._daemon("slurmdbd", "-D")
        wait(lambda: self.ask("sacctmgr", "-n", "show", "cluster").returncode == 0, "slurmdbd")
        self._daemon("slurmctld", "-D", "-i")
        self._daemon("slurmd", "-D", "-N", "localhost")
        wait(lambda: "idle" in self.ask("sinfo", "-h", "-o", "%T").stdout, "an idle node")

    def stop(self) -> None:
        """Cancel all jobs, wait until they are gone, then end every daemon."""
        self.clear()
        for daemon in reversed(self._daemons):
            daemon.send_signal(signal.SIGTERM)
            try:
                daemon.wait(30)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        os.environ.pop("SLURM_CONF", None)

    def clear(self) -> None:
        """An empty queue."""
        self.ask("scancel", "--user=root")
        wait(lambda: not self.ask("squeue", "-h").stdout.strip(), "an empty queue")

    def ask(self, *command: str) -> subprocess.CompletedProcess:
        """A client's answer."""
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)

    def states(self, job: str) -> list[str]:
        """The accounting's state of every task of a job."""
        return self.ask("sacct", "-n", "-P", "-X", "-j", job, "-o", "State").stdout.split("\n")[:-1]

    def _write(self, name: str, text: str) -> Path:
        file = self.folder / name
        file.write_text(text.replace("{lab}", str(self.folder)).lstrip())
        return file

    def _daemon(self, *command: str) -> None:
        log = (self.folder / f"log/{command[0]}.out").open("w")
        environment = os.environ | {"PATH": f"{os.environ['PATH']}:/usr/sbin"}
        self._daemons.append(
            subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True)
        )

"""A throwaway SLURM cluster of simulated nodes on this machine: real daemons, each node its own Linux namespaces.

    login (10.78.0.254)   munged and slurmctld; `Cluster.run` runs commands here
    node1 (10.78.0.1) ..  slurmd and the jobs' steps, with fake GPUs

Every node has its own host name, address, ports and processes. The nodes hang on a bridge without an uplink, and all of
them are children of the login machine's process 1, which ends when this Python process does: nothing is left behind.
The file system is shared, as a cluster's parallel file system is.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

INSTALL_VARIABLE = "DISTCXR_INSTALL_SLURM"
"""Set to 1, it allows installing SLURM's Debian packages on this machine."""
_PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge", "iproute2", "util-linux")
_TOOLS = ("slurmctld", "slurmd", "sbatch", "srun", "scontrol", "munged", "mungekey", "ip", "unshare", "nsenter")
_SBIN = "/usr/sbin:/sbin"
_MACHINE = Path(__file__).parent / "slurm" / "machine.sh"
_NET = "10.78.0"

CONFIG = """
ClusterName=simulated
SlurmctldHost=login({net}.254)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# cred_expire is also how long a requeued job waits before it may start again (120 s by default).
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdSpoolDir={folder}/spool/%n
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MinJobAge=86400
# Another cluster on this machine has counted from 1 already.
FirstJobId={first_job}
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
SlurmdParameters=config_overrides
# Failures within seconds instead of minutes.
SlurmctldTimeout=30
SlurmdTimeout={slurmd_timeout_s}
KillWait=10
MessageTimeout=10
BatchStartTimeout=10
ReturnToService=2
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2,sched_min_interval=0,bf_interval=2
JobRequeue=1
# A job in `urgent` puts jobs in `batch` back into the queue; they get a signal first.
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
NodeName=node[1-{nodes}] CPUs={cpus} RealMemory=16384 Gres=gpu:{gpus} State=UNKNOWN
PartitionName=batch Nodes=ALL Default=YES DefaultTime=10 PriorityTier=1 PreemptMode=REQUEUE GraceTime=30
PartitionName=urgent Nodes=ALL DefaultTime=10 PriorityTier=10 PreemptMode=OFF
"""


def reason_against() -> str | None:
    """Why no cluster can be simulated here; None where it can. Installs packages only if it is allowed to."""
    if os.name != "posix" or os.geteuid() != 0:
        return "a simulated SLURM cluster needs root"
    if shutil.which("unshare") is None or subprocess.run(
        ["unshare", "--mount", "--uts", "--net", "--pid", "--fork", "true"], capture_output=True
    ).returncode:  # fmt: skip
        return "a simulated SLURM cluster needs CAP_SYS_ADMIN and CAP_NET_ADMIN (docker run --privileged)"
    if not _missing():
        return None
    if os.environ.get(INSTALL_VARIABLE) != "1":
        return f"SLURM is not installed ({', '.join(_missing())} missing); {INSTALL_VARIABLE}=1 installs its packages"
    return _install()


def _missing() -> list[str]:
    return [tool for tool in _TOOLS if shutil.which(tool, path=f"{os.environ['PATH']}:{_SBIN}") is None]


def _install() -> str | None:
    if shutil.which("apt-get") is None:
        return f"{', '.join(_missing())} missing, and there is no apt-get to install SLURM with"
    policy = Path("/usr/sbin/policy-rc.d")
    ours = not policy.exists()
    if ours:  # no daemon of the packages may start on this machine
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
    environ = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    try:
        for command in (("update",), ("install", "-y", "--no-install-recommends", *_PACKAGES)):
            done = subprocess.run(["apt-get", *command], env=environ, capture_output=True, text=True)
            if done.returncode:
                return f"SLURM's packages can't be installed: {done.stderr[-300:]}"
    finally:
        if ours:
            policy.unlink()
    return f"missing after the installation: {', '.join(_missing())}" if _missing() else None


class Cluster:
    """A cluster that lives as long as the `with` block.

    Args:
        folder: of configuration, state and logs; must be short, because sockets lie in it.
        slurmd_timeout_s: after which a silent node counts as down.
    """

    def __init__(self, folder: Path, *, nodes: int, cpus: int = 8, gpus: int = 4, slurmd_timeout_s: int = 10) -> None:
        self.folder, self.nodes = folder, nodes
        self._config = CONFIG.format(
            net=_NET, folder=folder, first_job=int(time.time()) % 10**7 + 1, nodes=nodes, cpus=cpus, gpus=gpus,
            slurmd_timeout_s=slurmd_timeout_s,
        )  # fmt: skip
        self._gpus = gpus
        self._machines: dict[str, subprocess.Popen[bytes]] = {}
        self.environ = {
            key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "SBATCH_", "DISTCXR_"))
        } | {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": f"{os.environ['PATH']}:{_SBIN}"}

    def __enter__(self) -> Cluster:
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        login = self._machines.pop("login", None)
        machines = [login, *self._machines.values()] if login else []  # all the others are its children
        for machine in machines:
            _pull_plug(machine)

    def _start(self) -> None:
        for name in ("state", "spool", "munge"):
            (self.folder / name).mkdir(mode=0o700)
        self.folder.chmod(0o755)
        (self.folder / "slurm.conf").write_text(self._config)
        gpus = [self.folder / f"gpu{number}" for number in range(self._gpus)]
        for gpu in gpus:
            gpu.symlink_to("/dev/null")  # SLURM wants a character device and takes the number from its name
        lines = [f"Name=gpu File={gpu}" for gpu in gpus]
        (self.folder / "gres.conf").write_text("\n".join(["AutoDetect=off", *lines, ""]))
        hosts = {"127.0.0.1": "localhost", f"{_NET}.254": "login"}
        hosts |= {f"{_NET}.{number}": f"node{number}" for number in self._numbers()}
        (self.folder / "hosts").write_text("".join(f"{address} {name}\n" for address, name in hosts.items()))
        munge = self.folder / "munge"
        socket, key = self.folder / "munge.socket", munge / "key"
        daemons = f"""
            mungekey --create --keyfile={key}
            munged --force --socket={socket} --key-file={key} --pid-file={munge}/pid --seed-file={munge}/seed \\
              --log-file={munge}/log
            slurmctld -c"""
        self._boot("login", f"{_NET}.254", daemons)
        for number in self._numbers():
            self.boot(number, wait=False)
        self._wait(lambda: self._idle() == self.nodes, 30, "the nodes to be idle")

    def _numbers(self) -> Iterable[int]:
        return range(1, self.nodes + 1)

    def boot(self, number: int, wait: bool = True) -> None:
        """Start a node, the first time or after its power was cut."""
        name = f"node{number}"
        for stale in (f"{name}.pid", f"{name}.up"):
            (self.folder / stale).unlink(missing_ok=True)
        self._boot(name, f"{_NET}.{number}", "slurmd")
        if wait:
            self._wait(
                lambda: f"{name} idle" in self.run("sinfo", "-h", "-N", "-o", "%N %T").stdout, 30, f"{name} idle"
            )

    def cut_power(self, number: int) -> None:
        """Every process of a node dies at once."""
        _pull_plug(self._machines.pop(f"node{number}"))

    def kill_daemon(self, number: int) -> None:
        """A node's slurmd dies; the jobs' steps live on."""
        pid = (self.folder / f"slurmd.node{number}.pid").read_text().strip()
        self.on_node(number, "kill", "-KILL", pid)

    def mount_disk(self, number: int, folder: Path, size: str) -> None:
        """Give a node a disk of its own at `folder`, of a size such as 64k; it lasts until the node's power is cut."""
        folder.mkdir(parents=True, exist_ok=True)
        self.on_node(number, "mount", "-t", "tmpfs", "-o", f"size={size}", "disk", str(folder))

    def on_node(self, number: int, *command: str) -> str:
        """Run a command with a node's processes and disks in sight; its output."""
        node = (self.folder / f"node{number}.pid").read_text().strip()
        return self.run("nsenter", "--target", node, "--pid", "--mount", *command).stdout

    def _boot(self, name: str, address: str, command: str) -> None:
        enter = [] if name == "login" else self._enter("login")
        # Its own clock since boot: by it SLURM knows whether a node was away.
        up_s = int(float(Path("/proc/uptime").read_text().split()[0]))
        clock = [] if name == "login" else ["--time", f"--boottime=-{up_s}"]
        unshare = ["unshare", "--mount", "--uts", "--net", "--pid", *clock, "--fork"]
        with (self.folder / f"{name}.boot.log").open("ab") as log:
            machine = subprocess.Popen(
                [*enter, *unshare, "bash", str(_MACHINE), str(self.folder), name, address, "bash", "-ec", command],
                stdin=subprocess.PIPE, stdout=log, stderr=log, env=self.environ, start_new_session=True,
            )  # fmt: skip
        self._machines[name] = machine
        pid = self.folder / f"{name}.pid"
        self._wait(pid.exists, 10, f"{name} to boot")
        if name != "login":
            number = name.removeprefix("node")
            cable = f"""
                ip link del port{number} 2>/dev/null || true
                ip link add port{number} type veth peer name eth0 netns {pid.read_text().strip()}
                ip link set port{number} master bridge up"""
            self.run("bash", "-ec", cable)
        self._wait((self.folder / f"{name}.up").exists, 20, f"the daemons of {name} to start")

    def _enter(self, name: str) -> list[str]:
        """Words before a command that runs on the login machine."""
        pid = (self.folder / f"{name}.pid").read_text().strip()
        return ["nsenter", "--target", pid, "--mount", "--uts", "--net", "--pid", f"--wd={os.getcwd()}"]

    def run(
        self, *command: str, cwd: Path | None = None, check: bool = True, **environ: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the login machine.

        Raises:
            AssertionError: `check`, and its exit code is not 0.
        """
        enter = [
            word if not word.startswith("--wd=") else f"--wd={cwd or os.getcwd()}" for word in self._enter("login")
        ]
        done = subprocess.run(
            [*enter, *command], env=self.environ | environ, capture_output=True, text=True, timeout=120
        )  # fmt: skip
        assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done

    def job(self, number: str) -> dict[str, str]:
        """The fields of `scontrol show job`: JobState, Restarts, ExitCode and so on."""
        return dict(re.findall(r"(\w+)=(\S*)", self.run("scontrol", "-o", "show", "job", number).stdout))

    def wait_for(
        self, number: str, wanted: Callable[[dict[str, str]], bool], within_s: float, log: Path
    ) -> dict[str, str]:
        """Wait until a job is as wanted.

        Raises:
            AssertionError: it is not so in time, or has ended otherwise; with the end of its log.
        """
        ended = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "BOOT_FAIL", "OUT_OF_MEMORY"}
        deadline = time.monotonic() + within_s
        while not wanted(job := self.job(number)):
            state = job["JobState"]
            if state in ended or time.monotonic() > deadline:
                text = log.read_text()[-6000:] if log.exists() else "no log"
                raise AssertionError(f"job {number} is {state} after {job['Restarts']} restarts\n{text}")
            time.sleep(0.3)
        return job

    def _idle(self) -> int:
        text = self.run("timeout", "5", "sinfo", "-h", "-p", "batch", "-t", "idle", "-o", "%D", check=False).stdout
        return sum(int(number) for number in text.split())

    def _wait(self, there: Callable[[], bool], within_s: float, what: str) -> None:
        deadline = time.monotonic() + within_s
        while not there():
            if time.monotonic() > deadline:
                logs = [f"{log.name}:\n{log.read_text()[-1500:]}" for log in sorted(self.folder.glob("*.log"))]
                raise AssertionError("\n".join([f"waited {within_s} s for {what}", *logs]))
            time.sleep(0.05)


def _pull_plug(machine: subprocess.Popen[bytes]) -> None:
    assert machine.stdin is not None
    machine.stdin.close()
    machine.wait(30)


def short_folder() -> Path:
    """A new folder with a path short enough for sockets."""
    return Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))

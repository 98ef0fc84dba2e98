"""Ray clusters of several nodes on this machine. Each node can be killed on its own."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

RAY = str(Path(sys.executable).with_name("ray"))
ROOT = Path(__file__).resolve().parents[2]
OBJECT_STORE = 100 * 2**20


@dataclass(frozen=True)
class Node:
    """One node: the process group of `ray start --block`, in a session of its own."""

    name: str
    process: "subprocess.Popen[bytes]"

    def processes(self, title: str = "") -> list[int]:
        """Return the living processes whose command line begins with `title`."""
        listing = subprocess.run(
            ["ps", "-e", "-o", "pid=,sess=,stat=,args="], capture_output=True, text=True
        )
        rows = (line.split(None, 3) for line in listing.stdout.splitlines())
        return [
            int(pid)
            for pid, session, state, command in rows
            if int(session) == self.process.pid and state[0] != "Z" and command.startswith(title)
        ]

    def kill(self) -> None:
        """Send SIGKILL to every process, as if the machine had failed."""
        for pid in self.processes():
            with suppress(ProcessLookupError):  # one may end with its parent
                os.kill(pid, signal.SIGKILL)
        self.process.wait(timeout=60)


@dataclass
class Nodes:
    """A head and the nodes that joined it."""

    folder: Path
    environment: Mapping[str, str]
    address: str = ""
    dashboard: str = ""
    started: list[Node] = field(default_factory=list)
    ports: Mapping[str, int] = field(default_factory=dict)

    def head(self, *options: str, host: str = "127.0.0.1", inside: Sequence[str] = ()) -> Node:
        """Start the head at `host`, always at the same ports; wait for its dashboard."""
        names = ("port", "dashboard-port", "ray-client-server-port", "dashboard-agent-listen-port")
        self.ports = self.ports or dict(zip(names, free_ports(len(names)), strict=True))
        self.address = f"{host}:{self.ports['port']}"
        self.dashboard = f"http://{host}:{self.ports['dashboard-port']}"
        given = [f"--{name}={port}" for name, port in self.ports.items()]
        head = self._start(
            "head", "--head", f"--temp-dir={self.folder}/ray", "--disable-usage-stats", *given,
            *options, inside=inside,
        )  # fmt: skip
        self._wait_until(head, lambda: _answers(f"{self.dashboard}/api/version"))
        return head

    def join(self, name: str, *options: str, inside: Sequence[str] = ()) -> Node:
        """Start a node, `inside` a command prefix; return when it is up."""
        (agent,) = free_ports(1)
        node = self._start(
            name, f"--address={self.address}", f"--dashboard-agent-listen-port={agent}",
            "--min-worker-port=0", "--max-worker-port=0", f'--resources={{"{name}": 1}}', *options,
            inside=inside,
        )  # fmt: skip
        # Two that start at once would take the same names of sockets.
        self._wait_until(node, lambda: "Ray runtime started" in self._log(name).read_text())
        return node

    def run(self, *command: str, timeout: float = 400) -> "subprocess.CompletedProcess[str]":
        """Run a driver's command to its end."""
        driver = self.start(*command)
        output, _ = driver.communicate(timeout=timeout)
        return subprocess.CompletedProcess(command, driver.returncode, output)

    def start(self, *command: str) -> "subprocess.Popen[str]":
        """Start a driver of the cluster. Its errors join its output."""
        return subprocess.Popen(
            command, cwd=ROOT, env={**self.environment, "RAY_ADDRESS": self.address},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def _start(self, name: str, *options: str, inside: Sequence[str] = ()) -> Node:
        command = [*inside, RAY, "start", "--block", f"--object-store-memory={OBJECT_STORE}"]
        with self._log(name).open("w") as log:
            process = subprocess.Popen(
                [*command, *options], cwd=self.folder, env=self.environment, stdout=log,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        self.started.append(Node(name, process))
        return self.started[-1]

    def _log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def _wait_until(self, node: Node, holds: Callable[[], bool]) -> None:
        for _ in range(600):
            assert node.process.poll() is None, self._log(node.name).read_text()
            if holds():
                return
            time.sleep(0.5)
        raise AssertionError(f"{node.name} did not start: {self._log(node.name).read_text()}")


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except (urllib.error.URLError, OSError):
        return False


@contextmanager
def nodes(**environment: str) -> Iterator[Nodes]:
    """Yield an empty cluster with its own folder and HOME. Its nodes are killed at the end.

    It asks nobody for a token. Tests that use Ray's state API on it have to run with
    RAY_AUTH_MODE=disabled, as `make faults` does: Ray reads the mode once in a process.
    """
    with ExitStack() as stack:
        # Sockets have short paths, which pytest's folders would exceed.
        home = stack.enter_context(
            tempfile.TemporaryDirectory(prefix="lc-", dir="/tmp", ignore_cleanup_errors=True)
        )
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "PYTHON"))}
        path = f"{Path(RAY).parent}{os.pathsep}{os.environ['PATH']}"
        ours = {
            "HOME": home, "PATH": path, "RAY_AUTH_MODE": "disabled",
            "RAY_raylet_start_wait_time_s": "300",
        }  # fmt: skip
        cluster = Nodes(Path(home), inherited | ours | environment)
        stack.callback(lambda: [node.kill() for node in reversed(cluster.started)])
        yield cluster


def free_ports(count: int) -> list[int]:
    """Return ports on which nothing listens now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for listener in sockets:
            listener.bind(("127.0.0.1", 0))
        return [listener.getsockname()[1] for listener in sockets]

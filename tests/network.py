"""Machines on one kernel: network namespaces whose cables can be pulled, made deaf, slow or moved to another machine.

Each `Network` has a switch, a namespace with a bridge and nothing else, and machines around it, each a namespace with
one interface `eth0`. The cable of a machine is a veth pair: one end is its `eth0`, the other a port of the bridge. So
one machine notices nothing of another's cable, as with real switches.

Nothing may stay behind. A namespace lives as long as its name, and a cable as long as either of its ends, so it is
enough to kill every process of the machines and to take the names away. The names tell who made them: pid and start
time, by which a later run finds what one that was killed has left (`sweep`).

Loss in one direction is made at the receiver, by a policy rule that sends what comes in over `eth0` into a black hole.
That works in every kernel that routes by policy, wants no packet filter, and is silent, while a sender with such a rule
would be told.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import itertools
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from pair import wait_until
from typing_extensions import Self
from wire import Wire, open_tap

from appserver import procfs

PREFIX = "cmapp"
NAMES = Path("/run/netns")
ETC = Path("/etc/netns")
"""`ip netns exec` shows the files in `/etc/netns/NAME` to a machine as those in its `/etc`."""

COMMAND_SECONDS = 20
CLONE_NEWNET = 0x40000000

BROADCAST = b"\xff" * 6
ARP_REQUEST = b"\x08\x06" + b"\x00\x01\x08\x00\x06\x04\x00\x01"
"""The frame's type, and the head of a question for an IPv4 address on Ethernet."""

_NUMBERS = itertools.count(1)


class NetworkError(Exception):
    """A command of the system has failed: what it was and what it said."""


class Machine:
    """One network namespace and what runs in it."""

    def __init__(self, name: str) -> None:
        self.name = name
        ip("netns", "add", name)
        self.ip("link", "set", "lo", "up")

    @property
    def words(self) -> tuple[str, ...]:
        """What to put before a command to have it run here. The process keeps its pid."""
        return (program("ip"), "netns", "exec", self.name)

    def ip(self, *words: str) -> str:
        return ip("-n", self.name, *words)

    def pids(self) -> set[int]:
        return {int(word) for word in ip("netns", "pids", self.name).split()}

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Be on this machine with the calling thread; what it opens there stays there."""
        with Path("/proc/thread-self/ns/net").open("rb") as own, (NAMES / self.name).open("rb") as there:
            _set_namespace(there.fileno())
            try:
                yield
            finally:
                _set_namespace(own.fileno())

    def hardware(self) -> str:
        """Give the hardware address of the interface."""
        with self.entered(), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as opened:
            opened.bind(("eth0", 0))
            return ":".join(f"{byte:02x}" for byte in opened.getsockname()[4])

    def announce(self) -> None:
        """Say that our addresses are here, so that nobody has to wait for old knowledge to expire.

        So does a guest that was moved, or its hypervisor for it (RFC 5227, section 3).
        """
        hardware = bytes.fromhex(self.hardware().replace(":", ""))
        addresses = re.findall(r"inet ([\d.]+)", self.ip("addr", "show", "dev", "eth0"))
        with self.entered(), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as opened:
            opened.bind(("eth0", 0))
            for address in addresses:
                ours = socket.inet_aton(address)
                opened.send(BROADCAST + hardware + ARP_REQUEST + hardware + ours + bytes(6) + ours)

    def write_etc(self, name: str, lines: list[str]) -> None:
        """Give the machine an `/etc/NAME` of its own. Its processes see it from their start, and what it becomes."""
        directory = ETC / self.name
        directory.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text("\n".join([*lines, ""]))

    def be_deaf(self) -> None:
        """Lose without a word what comes in; what goes out arrives."""
        self.ip("rule", "add", "pref", "5", "iif", "eth0", "blackhole")

    def hear(self) -> None:
        self.ip("rule", "del", "pref", "5")

    def freeze(self) -> None:
        """Stop every process. The kernel goes on: it acknowledges what arrives, and takes connections."""
        stopped: set[int] = set()
        while new := self.pids() - stopped:  # one may have forked while the others were stopped
            _signal_all(new, signal.SIGSTOP)
            stopped |= new

    def thaw(self) -> None:
        _signal_all(self.pids(), signal.SIGCONT)

    def close(self) -> None:
        """Kill everything here and take the machine away."""
        destroy(self.name)


class Network:
    """A switch with machines around it. A context manager: leaving it removes everything."""

    def __init__(self) -> None:
        sweep()
        self._name = f"{PREFIX}-{os.getpid()}-{_start_ticks(os.getpid())}-{next(_NUMBERS)}"
        self._machines: list[Machine] = []
        self._wires: list[Wire] = []
        self._ports = itertools.count(1)

    def __enter__(self) -> Self:
        try:
            self._switch = self._add("switch")
            self._switch.ip("link", "add", "bridge", "type", "bridge", "mcast_snooping", "0")
            self._switch.ip("link", "set", "bridge", "up")
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        for wire in self._wires:
            wire.close()
        for machine in reversed(self._machines):
            machine.close()

    def machine(self, name: str) -> Machine:
        """Add a machine without a cable."""
        machine = self._add(name)
        machine.ip("rule", "add", "pref", "10", "lookup", "local")
        machine.ip("rule", "del", "pref", "0")  # so that `be_deaf` can come before it
        return machine

    def plug(self, machine: Machine, address: str, *, hardware: str | None = None) -> str:
        """Give a machine a cable to a new port of the switch, and say at once that the address is there now.

        Gives the port's name. `hardware` is the address of the interface, where it must be that of an earlier one.
        """
        port = f"port{next(self._ports)}"
        peer = ["type", "veth", "peer", "name", "eth0", *(["address", hardware] if hardware else [])]
        self._switch.ip("link", "add", port, *peer, "netns", machine.name)
        self._finish_plug(machine, address, port)
        return port

    def plug_slow(self, machine: Machine, address: str, *, delay_seconds: float, loss: float) -> str:
        """The same with a cable that is slow and loses frames, in both directions. Tells what makes it so."""
        if has_netem():
            port = self.plug(machine, address)
            for end, device in ((machine, "eth0"), (self._switch, port)):
                words = ["root", "netem", "delay", f"{delay_seconds * 1000:g}ms", "loss", f"{loss * 100:g}%"]
                run(program("tc"), "-n", end.name, "qdisc", "add", "dev", device, *words)
            return "tc netem"
        self._lay_wire(machine, address, delay_seconds=delay_seconds, loss=loss)
        return "a relay in user space, since this kernel has no netem"

    def plug_narrow(self, machine: Machine, address: str) -> Wire:
        """The same with a cable that can be told to lose long frames (`max_bytes`)."""
        return self._lay_wire(machine, address)

    def _lay_wire(self, machine: Machine, address: str, *, delay_seconds: float = 0.0, loss: float = 0.0) -> Wire:
        port = f"port{next(self._ports)}"
        with machine.entered():
            near = open_tap("eth0")
        with self._switch.entered():
            far = open_tap(port)
        wire = Wire((near, far), delay_seconds=delay_seconds, loss=loss)
        self._wires.append(wire)
        self._finish_plug(machine, address, port)
        return wire

    def _finish_plug(self, machine: Machine, address: str, port: str) -> None:
        machine.ip("addr", "add", address, "dev", "eth0", *(["nodad"] if ":" in address else []))
        self._switch.ip("link", "set", port, "master", "bridge")
        machine.ip("link", "set", "eth0", "up")
        self.put_back(port)
        machine.announce()

    def unplug(self, machine: Machine) -> None:
        """Take the cable away, interface and port with it."""
        machine.ip("link", "del", "eth0")

    def pull(self, port: str) -> None:
        """Switch a port off: the machine behind it sees that its cable is dead, the others see nothing."""
        self._switch.ip("link", "set", port, "down")

    def put_back(self, port: str) -> None:
        """Switch a port on, and wait until frames go through it, which the bridge decides in its own time."""
        self._switch.ip("link", "set", port, "up")
        wait_until(lambda: "state forwarding" in self._switch.ip("-d", "link", "show", "dev", port), f"{port} up")

    def _add(self, name: str) -> Machine:
        machine = Machine(f"{self._name}-{name}")
        self._machines.append(machine)
        return machine


def destroy(name: str) -> None:
    """Kill what runs in a namespace and take its name away. The cables go with it."""
    if (NAMES / name).exists():

        def is_empty() -> bool:
            pids = {int(word) for word in ip("netns", "pids", name).split()}
            _signal_all(pids, signal.SIGKILL)
            return not pids

        wait_until(is_empty, f"the end of every process in {name}")
        ip("netns", "del", name)
    shutil.rmtree(ETC / name, ignore_errors=True)
    with contextlib.suppress(OSError):
        ETC.rmdir()  # where it is ours alone


def sweep() -> list[str]:
    """Remove what runs that were killed have left; give the names."""
    found = {path.name for directory in (NAMES, ETC) if directory.exists() for path in directory.iterdir()}
    abandoned = sorted(name for name in found if name.startswith(f"{PREFIX}-") and not _has_owner(name))
    for name in abandoned:
        with contextlib.suppress(NetworkError):  # another run sweeps too
            destroy(name)
    return abandoned


@functools.cache
def unavailable() -> str | None:
    """Tell why no network can be made here; None where one can."""
    if sys.platform != "linux":
        return "network namespaces are Linux's"
    if os.geteuid() != 0:
        return "making network namespaces needs root"
    try:
        with Network() as network:
            machine = network.machine("probe")
            network.plug(machine, "10.77.0.9/24")
            machine.be_deaf()
    except (NetworkError, OSError) as error:
        return f"this system does not let us make network namespaces: {error}"
    return None


@functools.cache
def has_netem() -> bool:
    with Network() as network:
        machine = network.machine("probe")
        network.plug(machine, "10.77.0.9/24")
        try:
            run(program("tc"), "-n", machine.name, "qdisc", "add", "dev", "eth0", "root", "netem", "delay", "1ms")
        except NetworkError:
            return False
    return True


def ip(*words: str) -> str:
    return run(program("ip"), *words)


def run(*words: str) -> str:
    """Run a command of the system; give what it says. Raises NetworkError."""
    done = subprocess.run(words, capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False)
    if done.returncode != 0:
        raise NetworkError(f"{' '.join(words)}: {done.stderr.strip() or done.returncode}")
    return done.stdout


def program(name: str) -> str:
    found = shutil.which(name, path=os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin")
    if found is None:
        raise NetworkError(f"there is no {name!r}: install iproute2")
    return found


def _signal_all(pids: set[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _start_ticks(pid: int) -> int:
    stat = procfs.process_stat(pid)
    assert stat is not None
    return stat.start_ticks


def _has_owner(name: str) -> bool:
    try:
        pid, ticks = (int(word) for word in name.split("-")[1:3])
    except ValueError:
        return False
    return procfs.is_same_process(pid, ticks)


def _set_namespace(fd: int) -> None:
    # os.setns came with Python 3.12.
    if ctypes.CDLL(None, use_errno=True).setns(fd, CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))

"""Two nodes of a Pacemaker cluster, a hypervisor on each, and a guest that is on one of them.

Each node runs the real corosync and pacemakerd, on files of its own. The guest's cable ends at the switch inside the
node that has it, and moves with it. The hypervisors of both nodes are played by one thread here, since a guest's
processes belong to no node: they have to go on when it migrates. A node that crashes takes the guest on it along.
"""

from __future__ import annotations

import contextlib
import io
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from cluster.agent import AGENT, CMAPPMGR
from cluster.world import FILES, Machine, World, WorldError
from pair import make_keys, wait_until
from typing_extensions import Self

NODES = ("n1", "n2")
GUEST = "g1"
"""As the keys of the tests have it; in the cluster's words `node=g1`."""

GUEST_ADDRESS = "10.78.0.10"
HARDWARE = "02:00:00:00:00:10"
"""A guest has one for life, and its neighbours remember it."""

POLL_SECONDS = 0.05
CLUSTER_SECONDS = 90
"""For what the cluster does by itself, on two busy cores."""

PROGRAMS = ("corosync", "pacemakerd", "crm", "crm_mon", "crm_resource")

COROSYNC = """\
totem {{
  version: 2
  cluster_name: cmapp
  transport: knet
  crypto_cipher: none
  crypto_hash: none
  token: 3000
}}
logging {{
  to_syslog: no
  to_logfile: yes
  logfile: /var/log/corosync/corosync.log
}}
quorum {{
  provider: corosync_votequorum
  two_node: 1
  wait_for_all: 0
}}
nodelist {{
{nodes}}}
"""

FIRST_CIB = """\
<cib crm_feature_set="3.0.14" validate-with="pacemaker-3.0" epoch="1" num_updates="0" admin_epoch="0">
<configuration><crm_config><cluster_property_set id="cib-bootstrap-options">
<nvpair id="o1" name="dc-deadtime" value="2s"/><nvpair id="o2" name="stonith-enabled" value="false"/>
<nvpair id="o3" name="no-quorum-policy" value="ignore"/>
</cluster_property_set></crm_config><nodes/><resources/><constraints/></configuration><status/>
</cib>
"""
"""Without the first value the nodes wait 20 s for each other before their first election."""

PREPARATION = """\
hostname {name}
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/lock /run/resource-agents /run/crm
chmod 1777 /run/lock /run/resource-agents
chown hacluster:haclient /run/crm
chmod 750 /run/crm
mount -t overlay overlay -o lowerdir={common}/etc:/etc /etc
mount --bind {files}/etc-corosync /etc/corosync
mount --bind {files}/lib-corosync /var/lib/corosync
mount --bind {files}/lib-pacemaker /var/lib/pacemaker
mount --bind {files}/log-corosync /var/log/corosync
mount --bind {files}/log-pacemaker /var/log/pacemaker
mount --bind {common}/hosts /etc/hosts
mount -t overlay overlay -o lowerdir={common}/ocf:/usr/lib/ocf/resource.d /usr/lib/ocf/resource.d
mount -t overlay overlay -o lowerdir={common}/sbin:/usr/sbin /usr/sbin
"""

FIRST = """\
while [ ! -e {files}/plugged ]; do sleep 0.05; done
corosync -f >/var/log/corosync/stderr 2>&1 &
for i in $(seq 200); do corosync-cfgtool -s >/dev/null 2>&1 && break; sleep 0.1; done
pacemakerd >/var/log/pacemaker/stderr 2>&1 &
while :; do wait -n || sleep 1; done
"""


def unavailable() -> str | None:
    """Tell why no cluster can be had here; None where one can."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    return f"{', '.join(missing)} missing: install pacemaker, corosync and crmsh" if missing else None


class Cluster:
    """The nodes, the hypervisors and the guest in a world. A context manager."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.nodes: dict[str, Machine] = {}
        self.guest: Machine | None = None
        self.place = ""
        self.starts = 0
        """How often the guest was started."""
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._hypervisor = threading.Thread(target=self._play_hypervisor, daemon=True)
        self._failure: BaseException | None = None
        self._make_files()

    def __enter__(self) -> Self:
        self._hypervisor.start()
        for name in NODES:
            self.boot(name)
        wait_until(lambda: self.nodes["n1"].run("crm_mon", "-1", check=False).count("Online: [ n1 n2 ]"), "both nodes")
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._hypervisor.join()

    # Nodes.

    def boot(self, name: str) -> None:
        """Start a node, which joins the cluster."""
        files = self.world.files / name
        (files / "plugged").unlink(missing_ok=True)
        inside = f"{FILES}/{name}"
        node = Machine(
            self.world, PREPARATION.format(name=name, files=inside, common=FILES), FIRST.format(files=inside)
        )
        self.world.ip("link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", str(node.pid))
        self.world.ip("link", "set", name, "master", "switch", "up")
        World.add_switch(node, "switch")
        node.ip("link", "set", "lo", "up")
        node.ip("link", "set", "eth0", "master", "switch", "up")
        node.ip("addr", "add", f"{address_of(name)}/24", "dev", "switch")
        (files / "plugged").touch()
        self.nodes[name] = node

    def crash(self, name: str) -> None:
        """Cut the power of a node, and with it of the guest that is there."""
        with self._lock:
            self.nodes.pop(name).crash()
            if self.place == name:
                self._destroy_guest()

    def any_node(self) -> Machine:
        return next(iter(self.nodes.values()))

    def configure(self, text: str) -> None:
        """Load a configuration in the words of crmsh."""
        (self.world.files / "cluster.crm").write_text(text)
        self.any_node().run("crm", "configure", "load", "update", f"{FILES}/cluster.crm")

    def where(self, resource: str) -> str:
        """Name the nodes on which the cluster believes a resource to run."""
        said = self.any_node().run("crm_resource", "-r", resource, "-W", check=False)
        return " ".join(
            line.split("is running on: ")[1].split()[0] for line in said.splitlines() if "running on: " in line
        )

    def wait_for(self, fact: str, happened: Callable[[], object]) -> None:
        """Wait until a function says yes, longer than for a thing of our own. Raises AssertionError."""
        deadline = time.monotonic() + CLUSTER_SECONDS
        while not happened():
            self.check()
            assert time.monotonic() < deadline, f"{fact}: not within {CLUSTER_SECONDS} s\n{self.overview()}"
            time.sleep(0.1)

    def check(self) -> None:
        """Raises AssertionError where nobody plays the hypervisor any more."""
        assert self._failure is None, f"the hypervisor failed: {self._failure}"

    def overview(self) -> str:
        return self.any_node().run("crm_mon", "-1", "-r", "-f", "-n", check=False)

    def failures(self, resource: str, node: str) -> str:
        """Give the fail count as the cluster writes it: a number or `INFINITY`."""
        said = self.any_node().run("crm_failcount", "-G", "-r", resource, "-N", node, check=False)
        return said.rpartition("value=")[2].strip()

    # The guest and its applications.

    def standing(self, resource: str, node: str) -> dict[str, str]:
        """What the manager of a resource says on a node; nothing where it has said nothing."""
        try:
            text = self.nodes[node].path(f"/run/resource-agents/cmappmgr-{resource}/status").read_text()
        except OSError:
            return {}
        return dict(line.split("=", 1) for line in text.splitlines())

    def pid_of(self, resource: str, node: str) -> int:
        """Give the pid of an application as the tests see it; 0 where it does not run there."""
        standing = self.standing(resource, node)
        if standing.get("state") != "running" or self.guest is None:
            return 0
        try:
            return self.guest.outer_pid(int(standing["pid"]))
        except WorldError:
            return 0

    def manager_pid(self, resource: str, node: str) -> int:
        """Give the pid of a manager as the tests see it; 0 where there is none."""
        try:
            text = self.nodes[node].path(f"/run/resource-agents/cmappmgr-{resource}/manager").read_text()
            return self.nodes[node].outer_pid(int(text.split()[0]))
        except (OSError, WorldError):
            return 0

    def _start_guest(self, node: str) -> None:
        self._destroy_guest()
        inside = f"{FILES}/{GUEST}"
        guest = Machine(self.world, f"hostname {GUEST}\nmkdir -p {inside}/state\nmount -t tmpfs tmpfs {inside}/state")
        guest.ip("link", "set", "lo", "up")
        host = self.nodes[node]
        host.ip(
            "link", "add", "vnet0", "type", "veth", "peer", "name", "eth0", "address", HARDWARE, "netns", str(guest.pid)
        )
        host.ip("link", "set", "vnet0", "master", "switch", "up")
        guest.ip("addr", "add", f"{GUEST_ADDRESS}/24", "dev", "eth0")
        guest.ip("link", "set", "eth0", "up")
        config = f"{inside}/cmappserver.conf"
        log = self.world.files / GUEST / "server.log"
        guest.start(sys.executable, "-m", "appserver", "--config", config, log=log)
        self.guest, self.place = guest, node
        self.starts += 1
        (self.world.files / "hypervisor" / "place").write_text(node)

    def _destroy_guest(self) -> None:
        if self.guest is not None:
            if self.place in self.nodes:  # its namespace is taken down at leisure, and the cable with it
                self.nodes[self.place].ip("link", "del", "vnet0")
            self.guest.crash()
        self.guest, self.place = None, ""
        (self.world.files / "hypervisor" / "place").unlink(missing_ok=True)

    def _migrate_guest(self, target: str) -> None:
        """Move the guest's cable; nothing in the guest notices more than a moment of silence."""
        self.nodes[self.place].ip("link", "set", "vnet0", "netns", str(self.nodes[target].pid))
        self.nodes[target].ip("link", "set", "vnet0", "master", "switch", "up")
        self.place = target
        (self.world.files / "hypervisor" / "place").write_text(target)

    def _play_hypervisor(self) -> None:
        requests = self.world.files / "hypervisor"
        while not self._over.wait(POLL_SECONDS):
            for path in requests.glob("request.*"):
                if not path.name.endswith(".new"):
                    with self._lock:
                        self._carry_out(path)

    def _carry_out(self, path: Path) -> None:
        wish, _, node = path.read_text().strip().partition(" ")
        try:
            if node in self.nodes:  # a node that has crashed meanwhile wants nothing any more
                {"start": self._start_guest, "stop": lambda _: self._destroy_guest(), "migrate": self._migrate_guest}[
                    wish
                ](node)
        except BaseException as error:  # told to whoever waits next
            self._failure = error
            raise
        finally:
            path.unlink()

    # Files.

    def _make_files(self) -> None:
        files = self.world.files
        agents = {"cmapp": AGENT, "test": Path(__file__).with_name("guest")}
        for provider, agent in agents.items():
            (files / "ocf" / provider).mkdir(parents=True)
            shutil.copy(agent, files / "ocf" / provider)
        for name in ("hypervisor", "sbin", "etc", GUEST):
            (files / name).mkdir()
        for program in ("cmappmgr", "cmapppki", "cmdeployvpkg"):
            (files / "sbin" / program).symlink_to(CMAPPMGR.with_name(program))
        with contextlib.redirect_stdout(io.StringIO()):  # what to do with the keys is done here
            make_keys(files / "keys")
        guest = files / GUEST
        (guest / "cmappserver.conf").write_text(
            "keyStore=../keys/server.private\ntrustStore=../keys/client.public\nstateDir=state\nlogDir=log\n"
        )
        host = f"keyStore=keys/client.private\n{GUEST}:\naddress={GUEST_ADDRESS}\ntrustStore=keys/server.public\n"
        (files / "cmappmgr.conf").write_text(host)
        (files / "etc" / "cmappmgr.conf").write_text(host.replace("=keys/", f"={FILES}/keys/"))
        hosts = ["127.0.0.1 localhost", f"{GUEST_ADDRESS} {GUEST}", *(f"{address_of(name)} {name}" for name in NODES)]
        (files / "hosts").write_text("\n".join([*hosts, ""]))
        for name in NODES:
            self._make_node_files(files / name)

    def _make_node_files(self, files: Path) -> None:
        files.mkdir()
        for name in ("etc-corosync", "lib-corosync", "log-corosync", "log-pacemaker"):
            (files / name).mkdir()
        # With the owners and modes of the installed package.
        subprocess.run(["cp", "-a", "/var/lib/pacemaker", str(files / "lib-pacemaker")], check=True)
        cib = files / "lib-pacemaker" / "cib" / "cib.xml"
        for old in cib.parent.iterdir():
            old.unlink()
        cib.write_text(FIRST_CIB)
        cib.chmod(0o600)
        shutil.chown(cib, "hacluster", "haclient")
        shutil.chown(files / "log-pacemaker", "hacluster", "haclient")
        nodes = "".join(
            f"  node {{\n    ring0_addr: {address_of(name)}\n    name: {name}\n    nodeid: {name[1:]}\n  }}\n"
            for name in NODES
        )
        (files / "etc-corosync" / "corosync.conf").write_text(COROSYNC.format(nodes=nodes))


def address_of(name: str) -> str:
    """Give the address of a node."""
    return f"10.78.0.{name[1:]}"

"""The cluster of the tests, up until somebody ends it: for whoever wants to see with their own eyes.

`make cluster` runs this. The programs that it writes to `build/cluster` are all that one needs:

- `n1`, `n2`, `g1`: run a command on a node or in the guest, or a shell without one;
- `power off NODE`, `power on NODE`: what the name says;
- `end`: ends the cluster, as Ctrl-C does.

Everything else is in the namespaces of the world (see `world`), and gone with this process, however it ends.
"""

from __future__ import annotations

import fcntl
import os
import shlex
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster import agent, nodes, world
from cluster.nodes import GUEST, NODES, Cluster
from cluster.world import FILES, Machine, World

DIRECTORY = agent.ROOT / "build" / "cluster"

LOOK_SECONDS = 0.1
"""Between two looks at what is asked for, and whether a machine is another one by now."""

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

CONFIGURATION = f"""\
property stonith-enabled=false no-quorum-policy=ignore
primitive vm1 ocf:test:guest \\
    op start timeout=60s op stop timeout=60s op monitor interval=5s timeout=20s \\
    op migrate_to timeout=60s op migrate_from timeout=60s
primitive db ocf:cmapp:cmappmgr \\
    params node={GUEST} service="{FILES}/apps/db" boot_timeout=60 stop_timeout=10 \\
    op start timeout=90s op stop timeout=60s op monitor interval=2s timeout=30s \\
    meta migration-threshold=3 allow-migrate=true
primitive ping_mon ocf:cmapp:cmappmgr \\
    params node={GUEST} service="{FILES}/apps/ping_mon" boot_timeout=60 stop_timeout=10 \\
    op start timeout=90s op stop timeout=60s op monitor interval=2s timeout=30s \\
    meta migration-threshold=3 allow-migrate=true
group pkg vm1 db ping_mon
location home pkg 50: n1
"""

APPLICATIONS = {
    "db": "#!/bin/sh\nexec sleep 1000000\n",
    "ping_mon": f"""\
#!/bin/sh
echo "watching the gateway"
while sleep 1; do
    if test -e {FILES}/gateway_down; then
        echo "the gateway does not answer"
        exit 3
    fi
done
""",
}

REFUSAL = """\
expected "off NODE" for one that is on, while the other is, or "on NODE" for one that is off; the nodes are n1 and n2
"""

GUIDE = f"""\
The cluster is up: on n1 the group pkg of vm1, which is the guest {GUEST}, and two applications in it.
In another terminal, in {{here}}:

  {{tools}}/n1 crm_mon -1 -f
      how things stand; without -1 it stays and follows
  {{tools}}/{GUEST} pkill -KILL -f -x '/bin/sh {FILES}/apps/ping_mon'
      an application dies: restarted in place and counted; at the third time the guest moves to n2
  {{tools}}/{GUEST} touch {FILES}/gateway_down
      the same with an exit code, 3, until the file is removed
  {{tools}}/n1 crm_resource --cleanup
      the counts are forgotten, and the guest goes home to n1
  {{tools}}/n1 pkill -KILL -x cmappmgr
      the managers die: others attach, the applications go on
  {{tools}}/n1 crm_resource -r vm1 --meta -p allow-migrate -v true
  {{tools}}/n1 crm_resource --move -r pkg -N n2
      now the guest migrates live; crm_resource --clear -r pkg lets it go home
  {{tools}}/n1 crm node standby n1
      a node is emptied; crm node online n1
  {{tools}}/power off n1
      a node loses its power; power on n1
  {{tools}}/n1 cmdeployvpkg -P pkg --node {GUEST} -x engine=pacemaker -x appmon
      one more application, by questions
  {{tools}}/n1 cat /run/resource-agents/cmappmgr-ping_mon.log
      the manager's log
  {{tools}}/n1
      a shell on the node; n2 and {GUEST} likewise
  {{tools}}/end
      ends all of it, as Ctrl-C does here
"""

IN_MACHINE = """\
#!/bin/sh
# Runs a command there; without one, a shell.
[ $# -gt 0 ] || set -- bash
exec {words} "$@"
"""

ABSENT = """\
#!/bin/sh
echo "{name} does not run at the moment" >&2
exit 1
"""

ASK = """\
#!/bin/sh
# Asks the cluster's owner, process {owner}, and waits until it is done.
request={requests}/$$
echo "{prefix}$*" >"$request.new" && mv "$request.new" "$request" || exit 1
while [ -e "$request" ]; do
    [ -d /proc/{owner} ] || exit {gone}
    sleep 0.1
done
[ ! -e "$request.said" ] || {{ cat "$request.said" >&2; rm "$request.said"; exit 1; }}
"""


class Stand:
    """A cluster that runs, and the programs in `directory` that belong to it."""

    def __init__(self, cluster: Cluster, directory: Path, owner: int) -> None:
        self.ended = threading.Event()
        self._cluster = cluster
        self._directory = directory
        self._requests = directory / "requests"
        self._requests.mkdir()
        self._written: dict[str, str] = {}
        for name, prefix, gone in (("power", "", 1), ("end", "end", 0)):
            words = {"owner": owner, "requests": shlex.quote(str(self._requests)), "prefix": prefix, "gone": gone}
            self._write(name, ASK.format_map(words))
        self._write_machines()

    def serve(self) -> None:
        """Carry out what is asked for, until the end is."""
        while not self.ended.wait(LOOK_SECONDS):
            self._cluster.check()
            for request in sorted(self._requests.glob("*")):
                if not request.suffix:
                    self._carry_out(request)
            self._write_machines()

    def _carry_out(self, request: Path) -> None:
        match request.read_text().split():
            case ["end"]:
                self.ended.set()
                return  # answered by the end itself
            case ["off", name] if name in self._cluster.nodes and len(self._cluster.nodes) > 1:
                self._cluster.crash(name)
            case ["on", name] if name in NODES and name not in self._cluster.nodes:
                self._cluster.boot(name)
            case _:
                request.with_suffix(".said").write_text(REFUSAL)
        self._write_machines()
        request.unlink()

    def _write_machines(self) -> None:
        machines: dict[str, Machine | None] = {name: self._cluster.nodes.get(name) for name in NODES}
        machines[GUEST] = self._cluster.guest
        for name, machine in machines.items():
            script = ABSENT.format(name=name) if machine is None else IN_MACHINE.format(words=shlex.join(machine.words))
            self._write(name, script)

    def _write(self, name: str, script: str) -> None:
        if self._written.get(name) == script:
            return
        new = self._directory / f"{name}.new"
        new.write_text(script)
        new.chmod(0o755)
        new.replace(self._directory / name)
        self._written[name] = script


@contextmanager
def open_directory(directory: Path) -> Iterator[Path]:
    """Have a directory for ourselves, empty at first and gone at the end.

    Raises BlockingIOError where another has it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    lock = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for old in directory.iterdir():  # of one that was killed
            shutil.rmtree(old) if old.is_dir() else old.unlink()
        try:
            yield directory
        finally:
            shutil.rmtree(directory)
    finally:
        os.close(lock)


def put_applications(cluster: Cluster) -> None:
    """Write what is watched."""
    apps = cluster.world.files / "apps"
    apps.mkdir()
    for name, script in APPLICATIONS.items():
        (apps / name).write_text(script)
        (apps / name).chmod(0o755)


def end_at_signals() -> None:
    """Leave every context at the first signal, undisturbed by more of them."""

    def end(*_: object) -> None:
        for number in ENDING:
            signal.signal(number, signal.SIG_IGN)
        raise SystemExit(0)

    for number in ENDING:
        signal.signal(number, end)


def main() -> int:
    """Have the cluster until somebody ends it; give the exit status."""
    reason = agent.unavailable() or nodes.unavailable() or world.unavailable()
    if reason is not None:
        print(f"make cluster: {reason}", file=sys.stderr)
        return 1
    end_at_signals()
    try:
        with open_directory(DIRECTORY) as directory:
            print("Two nodes, each with corosync and pacemaker, are coming up.", flush=True)
            with World() as made, Cluster(made) as cluster:
                put_applications(cluster)
                cluster.configure(CONFIGURATION)
                cluster.wait_for("the group on n1", lambda: all(cluster.pid_of(name, "n1") for name in APPLICATIONS))
                stand = Stand(cluster, directory, os.getpid())
                print(GUIDE.format(here=agent.ROOT, tools=directory.relative_to(agent.ROOT)), flush=True)
                stand.serve()
    except BlockingIOError:
        print(f"make cluster: there is one already: {DIRECTORY / 'end'} ends it", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""A group of a guest and two applications on the two nodes of a real Pacemaker cluster, as in the figures 3 and 4 of
the old guide: what dies, what is restarted where, and what is not.

The tests share one cluster and run in their order; each leaves the group on n1, without a failure.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator

import pytest
from cluster import agent, nodes, world
from cluster.nodes import Cluster
from cluster.world import World
from pair import is_alive, wait_ended

REASON = agent.unavailable() or nodes.unavailable() or world.unavailable()

pytestmark = [pytest.mark.cluster, pytest.mark.skipif(REASON is not None, reason=str(REASON))]

THRESHOLD = 2

CONFIGURATION = f"""\
property stonith-enabled=false no-quorum-policy=ignore
rsc_defaults migration-threshold={THRESHOLD}
primitive vm1 ocf:test:guest \\
    op start timeout=60s op stop timeout=60s op monitor interval=2s timeout=20s \\
    op migrate_to timeout=60s op migrate_from timeout=60s
primitive ping_mon ocf:cmapp:cmappmgr \\
    params node=g1 service="/bin/sh -c 'while :; do sleep 1; done'" \\
        config=/mnt/cmappmgr.conf timeout=30 stop_timeout=5 \\
    op start timeout=90s op stop timeout=60s op monitor interval=1s timeout=30s meta allow-migrate=true
primitive db ocf:cmapp:cmappmgr \\
    params node=g1 service="/bin/sleep 100000" config=/mnt/cmappmgr.conf timeout=30 stop_timeout=5 \\
    op start timeout=90s op stop timeout=60s op monitor interval=1s timeout=30s meta allow-migrate=true
group pkg vm1 db ping_mon
location home pkg 50: n1
"""

APPLICATIONS = ("db", "ping_mon")
BEGAN = time.monotonic()


def say(text: str) -> None:
    print(f"{time.monotonic() - BEGAN:6.1f} s  {text}", flush=True)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    say("two nodes, each with corosync and pacemaker")
    with World() as made, Cluster(made) as cluster:
        cluster.configure(CONFIGURATION)
        wait_running(cluster, "n1")
        running = [f"{name} is process {pid}" for name, pid in pids(cluster, "n1").items()]
        say(f"the group runs on n1: {', '.join(running)}")
        yield cluster


def pids(cluster: Cluster, node: str) -> dict[str, int]:
    return {name: cluster.pid_of(name, node) for name in APPLICATIONS}


def wait_running(cluster: Cluster, node: str) -> None:
    """Wait until the guest and its applications are on a node, for the cluster as in truth."""

    def runs() -> bool:
        return (
            cluster.place == node
            and all(is_alive(pid) for pid in pids(cluster, node).values() if pid)
            and all(pids(cluster, node).values())
            and all(cluster.where(name) == node for name in ("vm1", *APPLICATIONS))
        )

    cluster.wait_for(f"the group on {node}", runs)


def settle(cluster: Cluster) -> None:
    cluster.any_node().run("crm_resource", "--wait")


def clean(cluster: Cluster) -> None:
    """Forget all failures; the group goes back to n1."""
    cluster.any_node().run("crm_resource", "-C")
    wait_running(cluster, "n1")
    settle(cluster)


def kill_application(cluster: Cluster, name: str, node: str) -> int:
    pid = cluster.pid_of(name, node)
    assert pid
    os.kill(pid, signal.SIGKILL)
    return pid


def test_an_application_that_dies_is_restarted_in_place_and_counted(cluster: Cluster) -> None:
    before, starts = pids(cluster, "n1"), cluster.starts
    kill_application(cluster, "ping_mon", "n1")
    cluster.wait_for("the restart", lambda: cluster.pid_of("ping_mon", "n1") not in {0, before["ping_mon"]})
    wait_running(cluster, "n1")
    assert cluster.failures("ping_mon", "n1") == "1"
    assert (cluster.starts, cluster.pid_of("db", "n1")) == (starts, before["db"])
    failed = [
        line.strip() for line in cluster.overview().splitlines() if "ping_mon" in line and "monitor on n1" in line
    ]
    assert "the application ended after" in failed[0]
    assert "ended by signal 9 (SIGKILL)" in failed[0]
    say(f"killed ping_mon, process {before['ping_mon']}: restarted in place as {cluster.pid_of('ping_mon', 'n1')}")
    say(f"the fail count is 1, db and the guest went on; crm_mon: {failed[0]}")


def test_an_application_that_dies_more_often_takes_the_whole_guest_to_the_other_node(cluster: Cluster) -> None:
    before, starts = pids(cluster, "n1"), cluster.starts
    kill_application(cluster, "ping_mon", "n1")
    wait_running(cluster, "n2")
    assert cluster.failures("ping_mon", "n1") == str(THRESHOLD)
    assert cluster.starts == starts + 1
    assert not any(is_alive(pid) for pid in before.values())
    say(f"killed it again, migration-threshold {THRESHOLD}: the guest was started on n2, and both applications in it")
    print(cluster.overview())
    clean(cluster)
    say("cleaned up: all of it is back on n1")


def test_a_guest_that_can_migrate_is_moved_alive_and_only_what_failed_is_restarted(cluster: Cluster) -> None:
    cluster.any_node().run("crm_resource", "-r", "vm1", "--meta", "-p", "allow-migrate", "-v", "true")
    settle(cluster)
    before, starts = pids(cluster, "n1"), cluster.starts
    for _ in range(THRESHOLD):
        old = kill_application(cluster, "ping_mon", cluster.place)
        cluster.wait_for("the restart", lambda: cluster.pid_of("ping_mon", cluster.place) not in {0, old})  # noqa: B023
    wait_running(cluster, "n2")
    assert (cluster.starts, cluster.pid_of("db", "n2")) == (starts, before["db"])
    say("the same with allow-migrate=true for the guest: it moved alive to n2, db went on, ping_mon was started there")
    clean(cluster)
    assert cluster.pid_of("db", "n1") == before["db"]


def test_a_manager_that_is_killed_is_replaced_and_the_application_goes_on(cluster: Cluster) -> None:
    before = pids(cluster, "n1")
    for name in APPLICATIONS:
        old = cluster.manager_pid(name, "n1")
        os.kill(old, signal.SIGKILL)
        wait_ended(old)
        cluster.wait_for("another manager", lambda: cluster.manager_pid(name, "n1") not in {0, old})  # noqa: B023
    wait_running(cluster, "n1")
    settle(cluster)
    assert pids(cluster, "n1") == before
    assert all(cluster.failures(name, "n1") == "0" for name in APPLICATIONS)
    say(f"killed both managers: others attached, processes {sorted(before.values())} as before, nothing counted")


def test_a_guest_that_migrates_live_takes_its_applications_along_without_a_restart(cluster: Cluster) -> None:
    before, starts = pids(cluster, "n1"), cluster.starts
    began = time.monotonic()
    cluster.any_node().run("crm_resource", "-M", "-r", "pkg", "-N", "n2")
    wait_running(cluster, "n2")
    settle(cluster)
    assert pids(cluster, "n2") == before
    assert cluster.starts == starts
    assert cluster.standing("ping_mon", "n2")["attached"] == "yes"
    assert not any(cluster.standing(name, "n1") for name in APPLICATIONS)
    say(f"migrated live to n2 in {time.monotonic() - began:.1f} s: processes {sorted(before.values())} as before")
    cluster.any_node().run("crm_resource", "-U", "-r", "pkg")
    wait_running(cluster, "n1")
    settle(cluster)
    assert pids(cluster, "n1") == before
    say("and back to n1, the same processes still")


def test_a_stop_ends_the_application_in_the_guest(cluster: Cluster) -> None:
    before = pids(cluster, "n1")
    cluster.any_node().run("crm_resource", "-r", "ping_mon", "--meta", "-p", "target-role", "-v", "Stopped")
    wait_ended(before["ping_mon"])
    settle(cluster)
    assert cluster.pid_of("db", "n1") == before["db"]
    cluster.any_node().run("crm_resource", "-r", "ping_mon", "--meta", "-d", "target-role")
    wait_running(cluster, "n1")
    assert cluster.pid_of("db", "n1") == before["db"]
    say("stopped ping_mon: it ended in the guest, db went on; started it again")


def deploy(cluster: Cluster, node: str, monitor: str) -> str:
    words = ("-Q", "-P", "pkg", "--node", "g1", "-x", "engine=pacemaker", "-x", f"appmon={monitor}")
    done = subprocess.run(
        [*cluster.nodes[node].words, "cmdeployvpkg", *words], capture_output=True, text=True, timeout=60, check=False
    )
    return f"{done.returncode} {done.stdout}{done.stderr}"


def test_cmdeployvpkg_adds_an_application_to_the_cluster_that_runs_and_a_second_time_changes_nothing(
    cluster: Cluster,
) -> None:
    before = pids(cluster, "n1")
    monitor = """web:/bin/sh -c 'sleep 86400; : "two  blanks" \\ '  :30:1:60"""
    assert "\nThe cluster has new resources: web\n" in deploy(cluster, "n1", monitor)
    cluster.wait_for("the new one", lambda: cluster.pid_of("web", "n1") and cluster.where("web") == "n1")
    settle(cluster)
    configured = cluster.any_node().run("cibadmin", "--query", "--scope", "configuration")

    assert (
        deploy(cluster, "n2", monitor) == "0 The cluster has the resource web already, just so.\nNothing to change.\n"
    )
    assert deploy(cluster, "n2", "web:/bin/other:30:1:60").startswith("1 ")
    assert "must be unique" in deploy(cluster, "n2", monitor.replace("web", "web2"))
    assert cluster.any_node().run("cibadmin", "--query", "--scope", "configuration") == configured

    old = kill_application(cluster, "web", "n1")
    cluster.wait_for("the restart", lambda: cluster.pid_of("web", "n1") not in {0, old})
    assert cluster.failures("web", "n1") == "1"
    assert pids(cluster, "n1") == before
    say("cmdeployvpkg added web to the group: it runs, is restarted and counted; a second time nothing changed")
    cluster.any_node().run("crm_resource", "-r", "web", "--meta", "-p", "target-role", "-v", "Stopped")
    settle(cluster)
    cluster.any_node().run("crm", "configure", "delete", "web")
    clean(cluster)


def test_a_node_that_dies_has_the_guest_and_its_applications_start_on_the_other(cluster: Cluster) -> None:
    before = pids(cluster, "n1")
    began = time.monotonic()
    cluster.crash("n1")
    wait_running(cluster, "n2")
    assert not any(is_alive(pid) for pid in before.values())
    say(f"killed the node n1: all of it runs on n2 after {time.monotonic() - began:.1f} s")
    cluster.boot("n1")
    wait_running(cluster, "n1")
    settle(cluster)
    say("n1 booted again: migrated back")

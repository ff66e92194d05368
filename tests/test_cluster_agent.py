"""The resource agent for Pacemaker without a cluster: every action, on a node that is a directory, with a real pair."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import agent as agents
from cluster.agent import AGENT, Agent
from pair import Guest, is_alive, kill_tree, wait_ended, wait_until

from appserver import procfs

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(agents.unavailable() is not None, reason=str(agents.unavailable())),
]

SLEEP = "/bin/sleep 1000"
METADATA_SCHEMA = Path("/usr/share/resource-agents/metadata.rng")


@pytest.fixture
def agent(guest: Guest, tmp_path: Path) -> Iterator[Agent]:
    agent = Agent(guest, tmp_path / "node", SLEEP)
    yield agent
    end(agent)


@pytest.fixture
def other_node(guest: Guest, tmp_path: Path) -> Iterator[Agent]:
    agent = Agent(guest, tmp_path / "other", SLEEP)
    yield agent
    end(agent)


def end(agent: Agent) -> None:
    """Kill the manager of an agent, if there is one."""
    if (agent.state / "manager").exists():
        kill_tree(agent.manager_pid)


def started(agent: Agent) -> int:
    """Start the application; give its pid."""
    assert agent.do("start") == agents.SUCCESS, agent.said
    assert is_alive(agent.pid)
    return agent.pid


def kill_manager(agent: Agent) -> None:
    manager = agent.manager_pid
    os.kill(manager, signal.SIGKILL)
    wait_ended(manager)


# What every agent is asked.


def test_ocf_tester_has_nothing_against_it(agent: Agent) -> None:
    if shutil.which("ocf-tester") is None or shutil.which("xmllint") is None:
        pytest.skip("ocf-tester (resource-agents) or xmllint (libxml2-utils) is missing")
    words = [word for name, value in agent.parameters.items() for word in ("-o", f"{name}={value}")]
    environment = {"HA_RSCTMP": str(agent.temporary), "PATH": os.environ["PATH"], "OCF_ROOT": "/usr/lib/ocf"}
    done = subprocess.run(
        ["ocf-tester", "-v", "-n", "app", *words, str(AGENT)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed all tests" in done.stdout


def test_the_metadata_are_what_the_schema_wants(agent: Agent) -> None:
    assert agent.call("meta-data", {}) == agents.SUCCESS
    if shutil.which("xmllint") is None or not METADATA_SCHEMA.exists():
        pytest.skip("xmllint or the schema of resource-agents is missing")
    for words in (["--relaxng", str(METADATA_SCHEMA)], ["--dtdvalid", str(METADATA_SCHEMA.with_name("ra-api-1.dtd"))]):
        done = subprocess.run(
            ["xmllint", "--noout", *words, "-"], input=agent.said, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    assert "<version>1.1</version>" in agent.said
    for name in agent.parameters:
        assert f'<parameter name="{name}"' in agent.said


def test_shellcheck_has_nothing_against_it() -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is missing")
    done = subprocess.run(["shellcheck", "-s", "sh", str(AGENT)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_an_unknown_action_is_told_as_such(agent: Agent) -> None:
    assert agent.do("promote") == agents.ERR_UNIMPLEMENTED


def test_it_works_with_an_environment_that_holds_the_parameters_only(agent: Agent) -> None:
    only = {name: value for name, value in agent.environment().items() if name.startswith(("OCF_RESKEY", "HA_"))}
    assert agent.call("monitor", only) == agents.NOT_RUNNING
    assert agent.call("start", only) == agents.SUCCESS, agent.said
    agent.name = "default"
    assert is_alive(agent.pid)
    assert agent.call("stop", only) == agents.SUCCESS


def test_start_and_stop_may_be_repeated(agent: Agent) -> None:
    assert agent.do("monitor") == agents.NOT_RUNNING
    assert agent.do("stop") == agents.SUCCESS
    pid, manager = started(agent), agent.manager_pid
    assert agent.do("monitor") == agents.SUCCESS
    assert started(agent) == pid
    assert agent.manager_pid == manager
    assert agent.do("stop") == agents.SUCCESS, agent.said
    assert not is_alive(pid)
    assert not is_alive(manager)
    assert not agent.state.exists()
    assert agent.do("stop") == agents.SUCCESS
    assert agent.do("monitor") == agents.NOT_RUNNING


def test_a_probe_needs_neither_parameters_nor_a_manager(agent: Agent) -> None:
    agent.parameters = {"cmappmgr": "/nowhere/cmappmgr"}
    assert agent.do("monitor", interval="0") == agents.NOT_RUNNING
    assert agent.do("stop") == agents.SUCCESS


# How the application ended.


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("/bin/sh -c 'sleep 0.5; exit 7'", "exited with code 7, by itself"),
        ("/bin/sh -c 'sleep 0.5; exit 0'", "exited with code 0, by itself"),
        ("/bin/sh -c 'sleep 0.5; kill -9 $$'", "ended by signal 9 (SIGKILL)"),
    ],
)
def test_an_end_is_a_failure_in_words_whatever_the_status(agent: Agent, line: str, words: str) -> None:
    agent.parameters["service"] = line
    pid = started(agent)
    wait_ended(pid)
    wait_until(lambda: agent.standing()["state"] == "ended", "the news of the end")
    assert agent.do("monitor") == agents.NOT_RUNNING
    assert words in agent.reason
    assert agent.do("stop") == agents.SUCCESS
    assert agent.do("monitor") == agents.NOT_RUNNING


def test_a_start_after_an_end_starts_it_anew(agent: Agent) -> None:
    pid = started(agent)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: agent.standing()["state"] == "ended", "the news of the end")
    assert started(agent) != pid


# The manager.


def test_a_manager_that_was_killed_is_replaced_and_attaches(agent: Agent) -> None:
    pid = started(agent)
    kill_manager(agent)
    assert agent.do("monitor") == agents.SUCCESS, agent.said
    assert agent.pid == pid
    assert is_alive(agent.manager_pid)
    assert agent.standing()["attached"] == "yes"


def test_a_manager_that_was_told_to_leave_is_replaced_too(agent: Agent) -> None:
    pid = started(agent)
    manager = agent.manager_pid
    os.kill(manager, signal.SIGTERM)
    wait_ended(manager)
    assert agent.do("monitor") == agents.SUCCESS, agent.said
    assert agent.pid == pid


def test_an_end_while_no_manager_watched_is_told_and_nothing_is_started(agent: Agent) -> None:
    agent.parameters["service"] = "/bin/sh -c 'sleep 1000; exit 7'"
    pid = started(agent)
    kill_manager(agent)
    kill_tree_but_root(pid)
    wait_ended(pid)
    assert agent.do("monitor") == agents.NOT_RUNNING
    assert "exited with code 7, by itself" in agent.reason
    assert agent.guest.server_log.count("started ") == 1


def kill_tree_but_root(pid: int) -> None:
    for stat in procfs.descendants(pid):
        os.kill(stat.pid, signal.SIGKILL)


# Stop.


def test_stop_ends_an_application_whose_manager_is_dead(agent: Agent) -> None:
    pid = started(agent)
    kill_manager(agent)
    assert agent.do("stop") == agents.SUCCESS, agent.said
    assert not is_alive(pid)


def test_stop_kills_what_ignores_term(agent: Agent) -> None:
    agent.parameters |= {"service": """/bin/sh -c 'trap "" TERM; while :; do sleep 1; done'""", "stop_timeout": "1"}
    pid = started(agent)
    assert agent.do("stop") == agents.SUCCESS, agent.said
    assert not is_alive(pid)


def test_stop_shortens_the_stop_timeout_where_the_action_has_no_time_for_it(agent: Agent) -> None:
    agent.parameters |= {"service": """/bin/sh -c 'trap "" TERM; while :; do sleep 1; done'""", "stop_timeout": "300"}
    pid = started(agent)
    assert agent.do("stop", seconds=20) == agents.SUCCESS, agent.said
    assert not is_alive(pid)


def test_stop_without_a_guest_succeeds_soon_since_the_guest_is_stopped_next(agent: Agent) -> None:
    started(agent)
    agent.guest.kill_server()
    began = time.monotonic()
    assert agent.do("stop", seconds=40) == agents.SUCCESS, agent.said
    assert time.monotonic() - began < 35
    assert "taken for stopped" in agent.said
    assert not agent.state.exists()


def test_stop_that_the_guest_refuses_fails(agent: Agent, guest: Guest) -> None:
    pid = started(agent)
    guest.configure("others:", "stop=nothing", "start=/bin/*", "attach=/bin/*")
    assert guest.server is not None
    guest.server.send_signal(signal.SIGHUP)
    wait_until(lambda: "configuration" in guest.server_log and "again" in guest.server_log, "the reload")
    assert agent.do("stop") == agents.ERR_GENERIC
    assert "refused" in agent.reason
    assert is_alive(pid)
    guest.configure()
    guest.server.send_signal(signal.SIGHUP)


# Start.


@pytest.mark.parametrize(
    ("changes", "status", "words"),
    [
        ({"service": "/no/such/program"}, agents.ERR_INSTALLED, "no-such-command"),
        ({"service": "/etc/passwd"}, agents.ERR_PERM, "not-executable"),
        ({"service": "'open"}, agents.ERR_CONFIGURED, "bad-service"),
        ({"service": " "}, agents.ERR_CONFIGURED, "the parameter service is missing or blank"),
        ({"node": ""}, agents.ERR_CONFIGURED, "the parameter node is missing"),
        ({"node": "two words"}, agents.ERR_CONFIGURED, "no host name"),
        ({"port": "x"}, agents.ERR_CONFIGURED, "--port"),
        ({"stop_timeout": "soon"}, agents.ERR_CONFIGURED, "soon is not a number of seconds"),
        ({"cmappmgr": "/nowhere"}, agents.ERR_INSTALLED, "there is no manager at /nowhere"),
        ({"config": "/nowhere"}, agents.ERR_ARGS, "/nowhere is not on this node"),
    ],
)
def test_a_start_that_cannot_be_says_why(agent: Agent, changes: dict[str, str], status: int, words: str) -> None:
    agent.parameters |= changes
    assert agent.do("start") == status, agent.said
    assert words in agent.reason
    assert agent.do("stop") == agents.SUCCESS


def test_unusable_keys_are_told(agent: Agent) -> None:
    (agent.guest.directory / "broken.conf").write_text("keyStore=/nowhere\n")
    agent.parameters["config"] = str(agent.guest.directory / "broken.conf")
    assert agent.do("start") == agents.ERR_ARGS
    assert "/nowhere" in agent.reason
    assert agent.do("stop") == agents.SUCCESS


@pytest.mark.parametrize("name", ["timeout", "boot_timeout", "survivors", "tail", "instance", "poll_interval"])
def test_validate_all_asks_the_manager_what_it_thinks_of_its_options(agent: Agent, name: str) -> None:
    assert agent.do("validate-all") == agents.SUCCESS, agent.said
    agent.parameters[name] = "x" * 300
    assert agent.do("validate-all") == agents.ERR_CONFIGURED
    assert agent.reason


def test_a_start_without_a_guest_ends_before_the_cluster_ends_it(agent: Agent) -> None:
    agent.guest.kill_server()
    began = time.monotonic()
    assert agent.do("start", seconds=10) == agents.ERR_GENERIC
    assert time.monotonic() - began < 10
    assert "no contact with the node" in agent.reason
    assert agent.do("monitor") == agents.ERR_GENERIC
    assert agent.do("stop") == agents.SUCCESS


def test_what_runs_already_is_attached_to(agent: Agent, other_node: Agent) -> None:
    assert started(agent) == started(other_node)


def test_the_service_reaches_the_guest_byte_for_byte(agent: Agent, tmp_path: Path) -> None:
    program = tmp_path / "it's  a \\ program"
    program.write_text(
        """#!/bin/sh\nprintf '%s|' "$@" >"$OUT"\nexec sleep 1000\n""".replace("$OUT", str(tmp_path / "out"))
    )
    program.chmod(0o755)
    agent.parameters["service"] = (
        f"""  "{str(program).replace(chr(92), chr(92) * 2)}"  'two  words' "a\\"b" '$HOME' '' ü\t* """
    )
    started(agent)
    wait_until((tmp_path / "out").exists, "the program's words")
    wait_until(lambda: (tmp_path / "out").read_text() == 'two  words|a"b|$HOME||ü|*|', "the words as they were given")


# Migration.


def test_what_migrates_goes_on_and_stop_on_the_source_leaves_it_alone(agent: Agent, other_node: Agent) -> None:
    pid = started(agent)
    assert agent.do("migrate_to", migrate_target="n2") == agents.SUCCESS, agent.said
    assert not agent.state.exists()
    assert other_node.do("migrate_from", migrate_source="n1") == agents.SUCCESS, other_node.said
    assert agent.do("stop") == agents.SUCCESS
    assert agent.do("monitor") == agents.NOT_RUNNING
    assert other_node.do("monitor") == agents.SUCCESS
    assert other_node.pid == pid
    assert is_alive(pid)
    assert other_node.do("stop") == agents.SUCCESS
    assert not is_alive(pid)


def test_what_ended_while_it_migrated_is_a_failure_and_is_not_started_in_silence(
    agent: Agent, other_node: Agent
) -> None:
    pid = started(agent)
    assert agent.do("migrate_to") == agents.SUCCESS
    os.kill(pid, signal.SIGKILL)
    wait_ended(pid)
    assert other_node.do("migrate_from") == agents.ERR_GENERIC
    assert "ended by signal 9" in other_node.reason or "does not run" in other_node.reason
    assert agent.guest.server_log.count("started ") == 1


def test_nothing_migrates_from_where_it_does_not_run(agent: Agent) -> None:
    assert agent.do("migrate_to") == agents.ERR_GENERIC
    pid = started(agent)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: agent.standing()["state"] == "ended", "the news of the end")
    assert agent.do("migrate_to") == agents.ERR_GENERIC
    assert "ended by signal 9" in agent.reason

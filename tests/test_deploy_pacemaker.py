"""Monitors as the configuration of a Pacemaker cluster. Where Pacemaker's tools are, on a file of theirs."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from appmgr.deploy.appmon import AppMonitor, Manager
from appmgr.deploy.closing import Surroundings
from appmgr.deploy.cluster import deploy
from appmgr.deploy.dialogue import Dialogue
from appmgr.deploy.errors import DeployError
from appmgr.deploy.options import DeployOptions
from appmgr.deploy.pacemaker import configuration, merge, read_cluster, wanted_primitive
from appmgr.deploy.serviceguard import Done

CLUSTER = """\
<cib crm_feature_set="3.0.14" validate-with="pacemaker-3.0" epoch="1" num_updates="0" admin_epoch="0">
  <configuration>
    <crm_config/><nodes/>
    <resources>
      <group id="vm1"><primitive id="vm1-guest" class="ocf" provider="heartbeat" type="Dummy"/></group>
      <primitive id="vm2" class="ocf" provider="heartbeat" type="Dummy"/>
    </resources>
    <constraints/>
  </configuration>
  <status/>
</cib>
"""

MONITOR = AppMonitor("ping_mon", '/apps/it\'s "two"  blanks & C:\\x', 240, "3", 300)
PRIMITIVE = wanted_primitive(MONITOR, Manager("vm1"))


def test_a_monitor_becomes_a_resource_that_restarts_as_often() -> None:
    assert PRIMITIVE.parameters == {
        "node": "vm1",
        "service": MONITOR.command,
        "timeout": "240",
        "stop_timeout": "260",
    }
    assert (PRIMITIVE.start_seconds, PRIMITIVE.stop_seconds, PRIMITIVE.threshold) == (270, 300, "4")


@pytest.mark.parametrize(("restart", "threshold"), [("none", "1"), ("1", "2"), ("unlimited", "INFINITY")])
def test_restarts_are_one_failure_fewer_than_the_threshold(restart: str, threshold: str) -> None:
    assert wanted_primitive(replace(MONITOR, restart=restart), Manager("vm1")).threshold == threshold


def test_a_stop_always_has_time_for_the_kill_in_the_guest() -> None:
    primitive = wanted_primitive(replace(MONITOR, halt_timeout_seconds=0), Manager("vm1"))
    assert (primitive.parameters["stop_timeout"], primitive.stop_seconds) == ("1", 41)


def test_what_is_not_the_default_is_written_down() -> None:
    parameters = wanted_primitive(MONITOR, Manager("vm1", "/opt/cmapp/bin/cmappmgr", "/etc/x.conf")).parameters
    assert (parameters["cmappmgr"], parameters["config"]) == ("/opt/cmapp/bin/cmappmgr", "/etc/x.conf")


def test_a_name_that_is_no_id_is_refused() -> None:
    with pytest.raises(DeployError, match="no id in Pacemaker"):
        wanted_primitive(replace(MONITOR, name="0mon"), Manager("vm1"))


def with_added(guest: str) -> str:
    """Merge what would be applied into the cluster's configuration, as cibadmin does."""
    cib = ET.fromstring(CLUSTER)
    added = ET.fromstring(configuration(guest, read_cluster(CLUSTER), [PRIMITIVE]))
    for group in added.iterfind("resources/group"):
        target = next(element for element in cib.iter("group") if element.get("id") == group.get("id"))
        target.extend(group)
    for name in ("resources", "constraints"):
        place = cib.find(f"configuration/{name}")
        assert place is not None
        place.extend(element for element in added.findall(f"{name}/*") if element.tag != "group")
    return ET.tostring(cib, encoding="unicode")


@pytest.mark.parametrize("guest", ["vm1", "vm1-guest"])
def test_a_monitor_goes_to_the_end_of_the_guests_group(guest: str) -> None:
    group = ET.fromstring(with_added(guest)).find("configuration/resources/group")
    assert group is not None
    assert [member.get("id") for member in group] == ["vm1-guest", "ping_mon"]


def test_a_guest_outside_a_group_is_tied_to_its_monitors() -> None:
    root = ET.fromstring(with_added("vm2"))
    constraints = [dict(element.attrib) for element in root.iterfind("configuration/constraints/*")]
    assert constraints == [
        {"id": "ping_mon-with-vm2", "score": "INFINITY", "rsc": "ping_mon", "with-rsc": "vm2"},
        {"id": "ping_mon-after-vm2", "kind": "Mandatory", "first": "vm2", "then": "ping_mon"},
    ]


def test_what_a_cluster_has_already_is_not_added_again() -> None:
    cluster = read_cluster(with_added("vm1"))
    assert cluster.monitors == (PRIMITIVE,)
    assert merge(cluster, [PRIMITIVE]) == ([], ["ping_mon"])


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"restart": "1"}, "has a resource 'ping_mon' already"),
        ({"name": "vm2"}, "has a resource 'vm2' already"),
        ({"name": "other"}, "'ping_mon' watches this very command"),
    ],
)
def test_what_is_taken_in_a_cluster_is_refused(change: dict[str, str], fault: str) -> None:
    monitor = replace(MONITOR, **change)  # type: ignore[arg-type]  # fields that are strings
    with pytest.raises(DeployError, match=fault):
        merge(read_cluster(with_added("vm1")), [wanted_primitive(monitor, Manager("vm1"))])


def test_a_guest_that_the_cluster_does_not_know_is_refused() -> None:
    with pytest.raises(DeployError, match="no resource or group 'vm3'"):
        configuration("vm3", read_cluster(CLUSTER), [PRIMITIVE])


@pytest.mark.parametrize("text", ["", "<cib", "<cib/>"])
def test_what_is_no_configuration_is_refused(text: str) -> None:
    with pytest.raises(DeployError, match="no configuration"):
        read_cluster(text)


def run(programs: str, out: io.StringIO, **changes: object) -> int:
    fields = {"monitors": (MONITOR,), "engine": "pacemaker", "quiet": True} | changes
    options = DeployOptions("vm1", "vm1", **fields)  # type: ignore[arg-type]  # its fields
    host = Surroundings("node1", {"PATH": programs})
    return deploy(options, Dialogue(io.StringIO(), out), host, lambda *_: None, Done())


def test_showing_needs_no_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("appmgr.deploy.programs.SEARCH_DIRECTORIES", ())
    out = io.StringIO()
    assert run(str(tmp_path), out, only_show=True) == 0
    said = out.getvalue()
    assert "the guest is taken for a group: there is no cibadmin on this host\n" in said
    document = said[said.index("<configuration>") : said.index("END\n")]
    assert document == configuration("vm1", None, [PRIMITIVE])
    with pytest.raises(DeployError, match="no cibadmin"):
        run(str(tmp_path), out)


def test_pacemaker_takes_what_is_applied_byte_for_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("cibadmin") is None:
        pytest.skip("no Pacemaker on this machine")
    file = tmp_path / "cib.xml"
    file.write_text(CLUSTER)
    monkeypatch.setenv("CIB_file", str(file))
    out = io.StringIO()
    assert run(os.environ["PATH"], out) == 0
    assert "The cluster has new resources: ping_mon\n" in out.getvalue()
    assert read_cluster(file.read_text()).monitors == (PRIMITIVE,)
    before = file.read_bytes()
    out = io.StringIO()
    assert run(os.environ["PATH"], out) == 0
    assert out.getvalue().endswith("Nothing to change.\n")
    assert file.read_bytes() == before
    shown = subprocess.run(["cibadmin", "--query", "--xpath", "//group/primitive"], capture_output=True, check=True)
    assert b"ping_mon" in shown.stdout

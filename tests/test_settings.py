"""What each program makes of its configuration file: defaults, precedence, and what is refused or warned of."""

from __future__ import annotations

from pathlib import Path

import pytest

import appmgr.settings
import appserver.settings
from appmgr.settings import load_node_settings
from appserver.settings import ServerOverrides, load_server_settings
from pki.errors import SettingsError


def write(tmp_path: Path, text: str) -> str:
    path = tmp_path / "f.conf"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_an_absent_default_file_gives_the_contracts_defaults_to_the_manager(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(appmgr.settings, "DEFAULT_CONFIG_PATH", str(tmp_path / "absent"))
    found = load_node_settings(None, "g1")
    assert (found.keys.key_store, found.keys.key_store_password) == ("/etc/client.private", "clientpw")
    assert (found.keys.trust_store, found.keys.trust_store_password) == ("/etc/server.public", "public")
    assert (found.keys.expired_pins, found.address, found.port) == ("accept", "g1", 5315)
    assert (found.config_path, found.warnings) == (None, ())


def test_the_contracts_example_is_understood(tmp_path: Path) -> None:
    text = (
        "keyStore=/etc/cmcluster/cmappmgr/client.private\nkeyStorePassword=\nmmpf121:\n"
        "trustStore=/etc/cmcluster/cmappmgr/server_mmpf121.public\ntrustStorePassword=public\n"
    )
    found = load_node_settings(write(tmp_path, text), "mmpf121")
    assert found.keys.key_store == "/etc/cmcluster/cmappmgr/client.private"
    assert found.keys.key_store_password == "clientpw"
    assert found.keys.trust_store == "/etc/cmcluster/cmappmgr/server_mmpf121.public"
    other = load_node_settings(write(tmp_path, text), "mmpf122")
    assert other.keys.trust_store == "/etc/server.public"


def test_a_nodes_own_line_wins_and_its_empty_value_means_the_default(tmp_path: Path) -> None:
    path = write(tmp_path, "port=1\ntrustStore=a\nexpiredPins=refuse\ng1:\nport=2\ntrustStore=\ng2:address=10.0.0.2\n")
    first, second = load_node_settings(path, "g1"), load_node_settings(path, "G2")
    assert (first.port, first.keys.trust_store, first.address) == (2, "/etc/server.public", "g1")
    assert (second.port, second.keys.trust_store, second.address) == (1, str(tmp_path / "a"), "10.0.0.2")
    assert first.keys.expired_pins == second.keys.expired_pins == "refuse"


def test_an_ipv6_node_is_found_with_and_without_brackets(tmp_path: Path) -> None:
    path = write(tmp_path, "[::1]:port=7\n")
    for node in ("::1", "[::1]", "0:0:0:0:0:0:0:1"):
        assert load_node_settings(path, node).port == 7
    assert load_node_settings(path, "[::1]").address == "::1"
    assert load_node_settings(write(tmp_path, "g1:address=[::1]\n"), "g1").address == "::1"


@pytest.mark.parametrize(
    "line", ["trustStroe=/x", "port=1\ng2:port=2", "port=0", "port=65536", "expiredPins=maybe", "address=a b"]
)
def test_a_fault_is_an_error_for_its_own_node_and_a_warning_for_another(tmp_path: Path, line: str) -> None:
    path = write(tmp_path, f"g1:port=9\ng2:\n{line}\n")
    with pytest.raises(SettingsError, match=r"f\.conf:[34]: (trustStroe|port|expiredPins|address): "):
        load_node_settings(path, "g2")
    found = load_node_settings(path, "g1")
    assert found.port == 9
    assert len(found.warnings) == 1
    assert f"{path}:" in found.warnings[0]


@pytest.mark.parametrize("line", ["maxProcesses=3", "trustStore", "port=x", "keyStore=a\nkeyStore=b"])
def test_a_fault_before_any_header_is_an_error_for_every_node(tmp_path: Path, line: str) -> None:
    with pytest.raises(SettingsError, match=r"f\.conf:[12]: "):
        load_node_settings(write(tmp_path, line), "g1")


def test_a_bad_value_for_every_node_is_an_error_also_where_the_node_has_its_own(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"f\.conf:1: port: "):
        load_node_settings(write(tmp_path, "port=x\ng1:port=7\n"), "g1")


def test_a_node_without_a_section_is_said_to_have_none_where_others_have_one(tmp_path: Path) -> None:
    path = write(tmp_path, "port=7\ng1:address=10.0.0.1\n")
    (warning,) = load_node_settings(path, "g2").warnings
    assert "no section 'g2:'" in warning
    assert load_node_settings(path, "g1").warnings == ()
    assert load_node_settings(write(tmp_path, "port=7\n"), "g2").warnings == ()


def test_a_comment_may_be_in_any_encoding_but_a_value_may_not(tmp_path: Path) -> None:
    path = tmp_path / "f.conf"
    path.write_bytes(b"# gr\xfc\xdfe\nport=7\n")
    assert load_node_settings(str(path), "g1").port == 7
    path.write_bytes(b"# gr\xfc\xdfe\ntrustStore=/\xfc\n")
    with pytest.raises(SettingsError, match=r"f\.conf:2: 'trustStore' has bytes that are not UTF-8"):
        load_node_settings(str(path), "g1")


def test_a_named_file_that_does_not_exist_is_an_error_for_both_programs(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="does not exist"):
        load_node_settings(str(tmp_path / "absent"), "g1")
    with pytest.raises(SettingsError, match="does not exist"):
        load_server_settings(str(tmp_path / "absent"))


def test_an_absent_default_file_gives_the_contracts_defaults_to_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert appserver.settings.default_config_path() == "/opt/hp/cmappserver/cmappserver.conf"
    monkeypatch.setattr(appserver.settings, "default_config_path", lambda: str(tmp_path / "absent"))
    found = load_server_settings(None)
    assert found.keys.key_store == "/opt/hp/cmappserver/server.private"
    assert found.keys.trust_store == "/opt/hp/cmappserver/client.public"
    assert (found.keys.key_store_password, found.keys.trust_store_password) == ("serverpw", "public")
    assert (found.listen, found.port, found.max_processes, found.policy.allow) == ((), 5315, 30, ())
    assert (found.state_dir, found.log_dir) == ("/run/cmappserver", "/var/log/cmappserver")
    assert (found.log_max_bytes, found.keys.expired_pins, found.config_path) == (10 * 1024 * 1024, "accept", None)


def test_every_key_of_the_server_is_understood(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "keyStore=k\nkeyStorePassword=p\ntrustStore=t\ntrustStorePassword=q\n"
        "listen=127.0.0.1, [::1] localhost\nport=0\nmaxProcesses=2\n"
        "stateDir=s\nlogDir=l\nlogMaxBytes=64 KiB\nexpiredPins=refuse\nallow=/apps/*\nallow=C:\\apps\\*\n",
    )
    found = load_server_settings(path)
    assert found.keys.key_store == str(tmp_path / "k")
    assert (found.keys.key_store_password, found.keys.trust_store_password) == ("p", "q")
    assert found.listen == ("127.0.0.1", "::1", "localhost")
    assert (found.port, found.max_processes, found.log_max_bytes) == (0, 2, 65536)
    assert (found.state_dir, found.log_dir) == (str(tmp_path / "s"), str(tmp_path / "l"))
    assert found.policy.allow == ("/apps/*", "C:\\apps\\*")
    assert (found.keys.expired_pins, found.config_path) == ("refuse", path)


def test_the_command_line_wins_over_the_servers_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path, "listen=127.0.0.1\nport=1\nstateDir=s\nlogDir=l\n")
    found = load_server_settings(path, ServerOverrides(listen=("[::1]",), port=0, state_dir="x", log_dir="/y"))
    assert (found.listen, found.port) == (("::1",), 0)
    assert (found.state_dir, found.log_dir) == (str(tmp_path / "x"), "/y")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("listen=127.0.0.1:5315", "listen: '127.0.0.1:5315' is neither an address nor a host name"),
        ("listen=a/b", "neither an address nor a host name"),
        ("port=65536", "port: '65536' is not a whole number from 0 to 65535"),
        ("maxProcesses=0", "maxProcesses: '0' is not a whole number from 1 to 1000"),
        ("logMaxBytes=3", "logMaxBytes: '3' is not a size"),
        ("allow=bin/x", "allow: 'bin/x' is not a pattern for an absolute path"),
        ("port=1\nport=1", ":2: port: repeated key"),
    ],
)
def test_a_bad_line_of_the_server_is_named(tmp_path: Path, line: str, words: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_server_settings(write(tmp_path, line))
    assert words in str(caught.value)


@pytest.mark.parametrize("overrides", [ServerOverrides(port=70000), ServerOverrides(listen=("a b",))])
def test_a_bad_word_on_the_command_line_is_named(tmp_path: Path, overrides: ServerOverrides) -> None:
    with pytest.raises(SettingsError, match=r"^--(port|listen): "):
        load_server_settings(write(tmp_path, ""), overrides)

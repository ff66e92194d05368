"""`cmapppki check`: which file it takes for whose, what it finds, and with which status."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from stores_for_tests import (
    GUEST,
    HOST,
    NOW,
    OTHER_GUEST,
    OTHER_HOST,
    authority,
    expiring,
    issued_by,
    key_pem,
    key_store,
    pem,
    print_of,
    put,
    rsa_key_store,
    trust_store,
)

from appmgr import settings as manager_settings
from appserver import settings as server_settings
from pki import checking, programs
from pki.certificates import Issued, Purpose
from pki.checking import program_of
from pki.cli import main
from pki.dates import Level, moment, parse_moment
from pki.doctor import Identity, judge_acceptance, judge_modes
from pki.errors import SettingsError
from pki.settings import parse_document

Captured = pytest.CaptureFixture[str]


class Place:
    """A host and a guest in one directory each, both in order until a test spoils something."""

    def __init__(self, path: Path) -> None:
        self.host, self.guest = path / "host", path / "guest"
        self.host.mkdir()
        self.guest.mkdir()
        self.own_key(HOST)
        self.guest_key(GUEST)
        self.nodes(g1=GUEST)
        trust_store(self.guest / "client.public", HOST)
        self.guest_config()

    def own_key(self, made: Issued) -> None:
        key_store(self.host / "client.private", made)

    def guest_key(self, made: Issued) -> None:
        key_store(self.guest / "server.private", made, "serverpw", "serverprivate")

    def nodes(self, *lines: str, **nodes: Issued) -> None:
        text = ["keyStore=client.private", *lines]
        for name, made in nodes.items():
            trust_store(self.host / f"server_{name}.public", made, alias="serverpublic")
            text += [f"{name}:", f"trustStore=server_{name}.public"]
        (self.host / "cmappmgr.conf").write_text("\n".join(text))

    def guest_config(self, *lines: str) -> None:
        text = ["keyStore=server.private", "trustStore=client.public", "port=5315", *lines]
        (self.guest / "cmappserver.conf").write_text("\n".join(text))

    @property
    def host_words(self) -> list[str]:
        return ["--config", str(self.host / "cmappmgr.conf")]

    @property
    def guest_words(self) -> list[str]:
        return ["--config", str(self.guest / "cmappserver.conf")]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def check(capsys: Captured, *words: str) -> tuple[int, str]:
    capsys.readouterr()
    status = main(["check", *words])
    captured = capsys.readouterr()
    return status, captured.out + captured.err


def test_the_tool_knows_the_configuration_as_the_programs_do() -> None:
    manager, server = programs.MANAGER, programs.SERVER
    assert manager.config_keys == set(manager_settings.KNOWN_KEYS)
    assert server.config_keys == set(server_settings.KNOWN_KEYS)
    assert manager.config_path == manager_settings.DEFAULT_CONFIG_PATH
    assert server.config_path == server_settings.default_config_path()
    own = manager_settings.load_node_settings("/dev/null", "g1").keys
    assert (own.key_store, own.key_store_password) == (manager.key_store, manager.key_password)
    assert (own.trust_store, own.trust_store_password) == (manager.trust_store, "public")
    own = server_settings.load_server_settings("/dev/null").keys
    assert (own.key_store, own.key_store_password) == (server.key_store, server.key_password)
    assert (own.trust_store, own.trust_store_password) == (server.trust_store, "public")


@pytest.mark.parametrize(
    ("path", "text", "expected"),
    [
        ("/x", "g1:\ntrustStore=a", "cmappmgr"),
        ("/x", "g1:trustStore=a", "cmappmgr"),
        ("/x", "address=10.0.0.1", "cmappmgr"),
        ("/x", "listen=::1", "cmappserver"),
        ("/x", "allow=/apps/*", "cmappserver"),
        ("/x", "rule a:\nallow=/apps/*", "cmappserver"),
        ("/x", "node1:\nmaxProcesses=5", "cmappserver"),
        ("/x/cmappmgr.conf", "port=1", "cmappmgr"),
        ("/x/cmappserver.conf.new", "port=1", "cmappserver"),
        ("/x", "keyStore=/etc/client.private", "cmappmgr"),
        ("/x", "keyStore=server.private", "cmappserver"),
    ],
)
def test_a_file_tells_by_its_content_whose_it_is(path: str, text: str, expected: str) -> None:
    assert program_of(parse_document(text, path)).name == expected


@pytest.mark.parametrize(
    ("text", "told"), [("g1:\naddress=::1\nlisten=::1", "has keys of cmappserver"), ("port=1", "cannot tell")]
)
def test_a_file_that_is_neither_or_both_is_refused(text: str, told: str) -> None:
    with pytest.raises(SettingsError, match=told):
        program_of(parse_document(text, "/x"))


def test_a_host_in_order_is_fine_and_says_what_the_guest_must_hold(place: Place, capsys: Captured) -> None:
    status, out = check(capsys, *place.host_words)
    assert status == 0, out
    assert f"node g1: this side is ready; the guest's trust store must hold SHA-256 {print_of(HOST)}" in out
    assert all(line.startswith(("fine ", "in all: fine")) for line in out.splitlines())


def test_with_both_files_it_says_whether_the_manager_reaches_the_guest(place: Place, capsys: Captured) -> None:
    status, out = check(capsys, *place.host_words, *place.guest_words)
    assert status == 0, out
    assert "node g1: on" in out
    assert "the manager reaches the guest of" in out


def test_a_guest_that_does_not_trust_this_host_is_not_reached(place: Place, capsys: Captured) -> None:
    trust_store(place.guest / "client.public", OTHER_HOST)
    status, out = check(capsys, *place.host_words, *place.guest_words)
    assert status == 2
    assert "does not reach the guest" in out
    assert "the manager's certificate is refused: it is not in the trust store: add it with cmapppki trust" in out


def test_of_several_nodes_the_one_that_pins_the_guest_is_meant(place: Place, capsys: Captured) -> None:
    place.nodes(g1=GUEST, g2=OTHER_GUEST)
    status, out = check(capsys, *place.host_words, *place.guest_words)
    assert status == 0, out
    assert "node g1: on" in out
    assert "node g2: none of these guests is this node" in out


def test_a_guest_that_no_node_trusts_is_named(place: Place, capsys: Captured) -> None:
    place.nodes(g2=OTHER_GUEST, g3=expiring(Purpose.SERVER, 300))
    status, out = check(capsys, *place.host_words, *place.guest_words)
    assert status == 2
    assert "no node of the manager's configuration trusts this guest's certificate" in out


def test_every_node_is_looked_at_and_the_worst_counts(place: Place, capsys: Captured) -> None:
    place.nodes(g1=GUEST, g2=OTHER_GUEST)
    (place.host / "server_g2.public").unlink()
    status, out = check(capsys, *place.host_words)
    assert status == 2
    assert "node g1: this side is ready" in out
    assert "unusable  node g2: cannot be reached: see above" in out
    assert "does not exist: make it with cmapppki" in out


def test_two_nodes_with_one_key_are_a_warning(place: Place, capsys: Captured) -> None:
    place.nodes(g1=GUEST, g2=GUEST)
    status, out = check(capsys, *place.host_words)
    assert status == 1
    assert "the nodes g1 and g2 trust the same key" in out


@pytest.mark.parametrize(
    ("days", "status", "told"),
    [
        (91, 0, "91 days left"),
        (89, 1, "fewer than 90: renew it with cmapppki renew client"),
        (29, 1, "fewer than 30"),
        (6, 1, "fewer than 7"),
        (1, 1, "1 day left"),
        (-2, 1, "peers accept it only as a pin"),
    ],
)
def test_days_left_are_counted_and_warned_about(
    place: Place, capsys: Captured, days: int, status: int, told: str
) -> None:
    place.own_key(expiring(Purpose.CLIENT, days, "host1"))
    found, out = check(capsys, *place.host_words)
    assert (found, told in out) == (status, True), out


def test_a_later_date_is_judged_too(place: Place, capsys: Captured) -> None:
    later = (NOW + timedelta(days=500)).date().isoformat()
    words = [*place.host_words, *place.guest_words, "--at", later]
    status, out = check(capsys, *words)
    assert status == 1
    assert f"on {later}: the certificate expired" in out
    assert f"node g1: on {later} the manager reaches the guest" in out
    place.guest_config("expiredPins=refuse")
    status, out = check(capsys, *words)
    assert status == 2
    assert f"node g1: on {later} the manager does not reach the guest" in out
    assert "expiredPins=refuse is set" in out


def test_an_expired_pin_is_a_warning_or_unusable_as_the_policy_says(place: Place, capsys: Captured) -> None:
    place.nodes(g1=expiring(Purpose.SERVER, -5))
    status, out = check(capsys, *place.host_words)
    assert (status, "it is accepted with a warning" in out) == (1, True)
    place.nodes("expiredPins=refuse", g1=expiring(Purpose.SERVER, -5))
    status, out = check(capsys, *place.host_words)
    assert (status, "expiredPins=refuse is set" in out) == (2, True)


@pytest.mark.parametrize(
    ("name", "data", "told"),
    [
        ("client.private", rsa_key_store(1024), "fewer than 2048"),
        ("client.private", key_pem(HOST) + pem(GUEST), "does not match its certificate"),
        ("client.private", key_pem(GUEST) + pem(GUEST), "does not allow it to be a client"),
        ("client.private", pem(HOST), "holds no private key: is it a trust store?"),
        ("server_g1.public", key_pem(GUEST) + pem(GUEST), "holds a private key: is it a key store?"),
        ("server_g1.public", pem(HOST), "does not allow it to be a server: it was made for the other side"),
        ("server_g1.public", bytes.fromhex("feedfeed00000002"), "keytool -importkeystore"),
        ("server_g1.public", b"", "is an empty file"),
    ],
)
def test_what_cannot_be_used_ends_with_2_and_its_cure(
    place: Place, capsys: Captured, name: str, data: bytes, told: str
) -> None:
    put(place.host / name, data, 0o600)
    status, out = check(capsys, *place.host_words)
    assert (status, told in out) == (2, True), out


def test_a_wrong_password_is_named_with_its_key(place: Place, capsys: Captured) -> None:
    place.nodes("keyStorePassword=other1", g1=GUEST)
    status, out = check(capsys, *place.host_words)
    assert (status, "wrong password (keyStorePassword)" in out) == (2, True)


@pytest.mark.parametrize("line", ["colour=red", "expiredPins=maybe", "g1:"])
def test_a_broken_configuration_ends_with_2(place: Place, capsys: Captured, line: str) -> None:
    with (place.host / "cmappmgr.conf").open("a") as file:
        file.write(f"\n{line}")
    status, out = check(capsys, *place.host_words)
    assert (status, "cmappmgr.conf:" in out) == (2, True), out


def test_no_configuration_at_all_ends_with_2_in_one_line(tmp_path: Path, capsys: Captured) -> None:
    status, out = check(capsys, "--config", str(tmp_path / "absent"))
    assert (status, out.count("\n")) == (2, 1)
    assert "does not exist" in out


@pytest.fixture
def defaults(place: Place, monkeypatch: pytest.MonkeyPatch) -> Place:
    """The tool takes this place's files for the default ones."""
    for name, program, home in (("MANAGER", programs.MANAGER, place.host), ("SERVER", programs.SERVER, place.guest)):
        config, key, trusted = home / f"{program.name}.conf", home / program.private_name, home / "trust.store"
        moved = replace(program, config_path=str(config), key_store=str(key), trust_store=str(trusted))
        monkeypatch.setattr(checking, name, moved)
    return place


@pytest.mark.usefixtures("defaults")
def test_both_default_files_are_read_where_none_is_named(capsys: Captured) -> None:
    status, out = check(capsys)
    assert status == 0, out
    assert "the manager reaches the guest of" in out


def test_a_program_without_configuration_is_judged_by_its_defaults(defaults: Place, capsys: Captured) -> None:
    (defaults.host / "cmappmgr.conf").unlink()
    shutil.rmtree(defaults.guest)
    trust_store(defaults.host / "trust.store", GUEST, alias="serverpublic")
    status, out = check(capsys)
    assert status == 0, out
    assert "absent: cmappmgr's defaults" in out
    assert "every node: this side is ready" in out


def test_a_machine_without_either_program_has_nothing_to_check(defaults: Place, capsys: Captured) -> None:
    shutil.rmtree(defaults.host)
    shutil.rmtree(defaults.guest)
    status, out = check(capsys)
    assert (status, out.count("\n")) == (2, 1)
    assert "nothing to check: neither" in out


def test_a_broken_default_file_ends_with_2(defaults: Place, capsys: Captured) -> None:
    (defaults.host / "cmappmgr.conf").write_text("nonsense")
    status, out = check(capsys)
    assert (status, "is not key=value" in out) == (2, True)


def test_a_certificate_from_the_future_is_named_with_both_dates(place: Place, capsys: Captured) -> None:
    early = (NOW - timedelta(days=30)).isoformat()
    status, out = check(capsys, *place.host_words, "--at", early)
    assert status == 1
    assert f"is not valid before {moment(GUEST.certificate.not_valid_before_utc)} (judged at" in out
    assert "is the clock right?" in out


def test_a_renewal_that_has_begun_is_told_of(place: Place, capsys: Captured) -> None:
    assert main(["renew", "client", "--dir", str(place.host)]) == 0
    status, out = check(capsys, *place.host_words)
    assert status == 0, out
    assert "a renewal has begun: when its certificate is everywhere, cmapppki renew client --switch" in out


def test_a_public_file_that_cannot_be_read_is_a_warning(place: Place, capsys: Captured) -> None:
    put(place.guest / "server_g1.public", b"rubbish")
    status, out = check(capsys, *place.guest_words)
    assert (status, "neither PKCS#12 nor PEM" in out) == (1, True), out


def test_unusable_keys_of_one_side_make_the_pair_unusable(place: Place, capsys: Captured) -> None:
    put(place.guest / "server.private", b"rubbish")
    status, out = check(capsys, *place.host_words, *place.guest_words)
    assert (status, "node g1: cannot be reached: see above" in out) == (2, True), out


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_file_of_another_user_is_told_of(place: Place, capsys: Captured) -> None:
    os.chown(place.host / "client.private", 12345, 12345)
    status, out = check(capsys, *place.host_words)
    assert (status, "it belongs to the user 12345, who may change it: if the program" in out) == (0, True), out


@pytest.mark.parametrize(
    ("name", "mode", "told"),
    [
        ("client.private", 0o640, "others may use its private key: chmod 600"),
        ("client.private", 0o604, "others may use its private key: chmod 600"),
        ("server_g1.public", 0o666, "others may write to it and let themselves in: chmod 644"),
        (".", 0o777, "everybody may replace files in"),
    ],
)
def test_modes_that_let_others_in_are_a_warning_with_the_command(
    place: Place, capsys: Captured, name: str, mode: int, told: str
) -> None:
    os.chmod(place.host / name, mode)
    status, out = check(capsys, *place.host_words)
    assert (status, told in out) == (1, True), out


def test_a_directory_further_up_that_everybody_may_write_is_found(tmp_path: Path) -> None:
    deep = tmp_path / "open" / "keys"
    deep.mkdir(parents=True)
    path = put(deep / "k", b"x", 0o600)
    assert [finding.level for finding in judge_modes(path, private=True)] == [Level.FINE]
    os.chmod(tmp_path / "open", 0o777)
    (finding,) = judge_modes(path, private=True)
    assert f"chmod o-w {tmp_path}/open" in finding.text
    os.chmod(tmp_path / "open", 0o1777)
    assert [finding.level for finding in judge_modes(path, private=True)] == [Level.FINE]


def test_a_public_file_that_is_not_of_this_key_is_a_warning(place: Place, capsys: Captured) -> None:
    trust_store(place.host / "client.public", OTHER_HOST)
    status, out = check(capsys, *place.host_words)
    assert status == 1
    assert f"client.public: does not hold the certificate of the key store: cmapppki trust {place.host}" in out


def test_programs_get_json(place: Place, capsys: Captured) -> None:
    status, out = check(capsys, *place.host_words, "--json")
    found = json.loads(out)
    assert (status, found["status"]) == (0, "fine")
    assert {"level", "about", "text"} == set(found["findings"][0])


def test_a_date_that_is_none_is_wrong_usage(place: Place) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["check", *place.host_words, "--at", "tomorrow"])
    assert caught.value.code == 2


def test_dates_are_read_with_and_without_a_time() -> None:
    assert parse_moment("2027-03-01").isoformat() == "2027-03-01T00:00:00+00:00"
    assert parse_moment("2027-03-01T12:00Z").isoformat() == "2027-03-01T12:00:00+00:00"
    assert parse_moment("2027-03-01T12:00+01:00").isoformat() == "2027-03-01T12:00:00+01:00"


KEY, ROOT = authority()


@pytest.mark.parametrize(
    ("san", "days", "purpose", "name", "expected"),
    [
        ("g1", 300, Purpose.SERVER, "G1", (Level.FINE, "accepted")),
        ("g1", 300, Purpose.SERVER, "g2", (Level.UNUSABLE, "an authority issued it for g1")),
        (None, 300, Purpose.SERVER, "g1", (Level.UNUSABLE, "an authority issued it for no name")),
        ("g1", -3, Purpose.SERVER, "g1", (Level.UNUSABLE, "it was issued by an authority")),
        ("h1", 300, Purpose.CLIENT, None, (Level.FINE, "accepted")),
        (None, 300, Purpose.CLIENT, None, (Level.UNUSABLE, "no name")),
    ],
)
def test_an_issued_certificate_must_be_in_date_and_carry_the_name(
    san: str | None, days: int, purpose: Purpose, name: str | None, expected: tuple[Level, str]
) -> None:
    shown = issued_by(KEY, ROOT, san, purpose=purpose, days=days)
    level, words = judge_acceptance(shown, purpose, Identity(None, (ROOT,), "accept"), name, NOW)
    assert level is expected[0]
    assert expected[1] in words


def test_a_certificate_for_the_other_side_is_not_accepted_even_as_a_pin() -> None:
    judge = Identity(None, (HOST.certificate,), "accept")
    level, words = judge_acceptance(HOST.certificate, Purpose.SERVER, judge, "host1", NOW)
    assert (level, "does not allow it to be a server" in words) == (Level.UNUSABLE, True)

"""The rules of the guest's file: reading them, whose they are, and what a process gets by them."""

from __future__ import annotations

import json
import os
import pwd
import sys
from pathlib import Path

import pytest

from appserver.attributes import (
    UNLIMITED,
    Account,
    Attributes,
    Limit,
    attributes_from_json,
    attributes_to_json,
)
from appserver.commands import CommandError
from appserver.rules import DISTRUSTED, EVERYTHING, Grant, Grants, Policy, Rule, show_policy
from appserver.runas import attributes_for, effective_user
from appserver.settings import load_server_settings
from pki.errors import SettingsError

FINGERPRINT = "AB:CD:" * 15 + "EF:01"
OTHER = "12:34:" * 15 + "56:78"
BARE = FINGERPRINT.replace(":", "").lower()


def policy(directory: Path, text: str) -> Policy:
    path = directory / "cmappserver.conf"
    path.write_text(text)
    return load_server_settings(str(path)).policy


def test_a_file_without_rules_allows_everything_to_everybody(tmp_path: Path) -> None:
    found = policy(tmp_path, "maxProcesses=3\n")
    assert found == Policy()
    assert not found.is_closed
    assert Grants(found.grants, {FINGERPRINT: "clientpublic"}).of(FINGERPRINT) == EVERYTHING


def test_a_rule_says_what_may_be_started_and_as_what(tmp_path: Path) -> None:
    text = """
allow=/apps/*
rule Oracle:
allow=/apps/oracle/*
allow=/opt/oracle/bin/*
user=oracle
group=dba
directory=/apps/oracle
environment=ORACLE_SID=PROD
environment=PATH=/apps/oracle/bin:/bin
limit=nofile 65536
limit=core unlimited
limit=as 64 MiB:1 GiB
"""
    found = policy(tmp_path, text)
    limits = (Limit("nofile", 65536, 65536), Limit("core", -1, -1), Limit("as", 64 << 20, 1 << 30))
    environment = (("ORACLE_SID", "PROD"), ("PATH", "/apps/oracle/bin:/bin"))
    patterns = ("/apps/oracle/*", "/opt/oracle/bin/*")
    assert found.rules == (Rule("oracle", patterns, "oracle", "dba", "/apps/oracle", environment, limits),)
    assert found.allow == ("/apps/*",)
    assert found.is_closed


def test_a_section_of_a_certificate_narrows_what_its_managers_may_do(tmp_path: Path) -> None:
    text = f"""
clientpublic:
start=/apps/*
attach=*
stop=nothing
user=web
maxProcesses=5
[{FINGERPRINT}]:start=/x
others:start=nothing
node9:
"""
    found = policy(tmp_path, text)
    assert found.grants == (
        Grant("clientpublic", ("/apps/*",), ("*",), (), "web", 5),
        Grant(BARE, ("/x",)),
        Grant("others", ()),
        Grant("node9"),
    )
    assert not found.is_closed


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("rule:\nallow=/a", "named 'rule' only"),
        ("rule a:\nuser=root", "the rule 'a' has no 'allow'"),
        ("rule a:", "the rule 'a' has no 'allow'"),
        ("rule a:\nallow=bin/x", "allow: 'bin/x' is not a pattern for an absolute path"),
        ("rule a:\nallow=/a\nstart=/a", "start: unknown key"),
        ("rule a:\nallow=/a\nuser=a\nuser=b", "user: repeated key"),
        ("rule a:\nallow=/a\nrule A:\nallow=/b", "a second header"),
        ("rule a:\nallow=/a\ndirectory=tmp", "directory: 'tmp' is not an absolute path"),
        ("rule a:\nallow=/a\nenvironment=FOO", "environment: NAME=VALUE was expected"),
        ("rule a:\nallow=/a\nenvironment=F-O=secret", "environment: NAME=VALUE was expected"),
        ("rule a:\nallow=/a\nlimit=open 5", "limit: 'open' is no limit: expected one of as, core"),
        ("rule a:\nallow=/a\nlimit=nofile", "limit: '' is no limit"),
        ("rule a:\nallow=/a\nlimit=nofile -5", "limit: '-5' is no limit"),
        ("rule a:\nallow=/a\nlimit=nofile 5:4", "the soft limit is above the hard one"),
        ("rule a:\nallow=/a\nlimit=nofile unlimited:4", "the soft limit is above the hard one"),
        ("rule a:\nallow=/a\nlimit=nofile 5:", "is no limit"),
        ("rule a:\nallow=/a\nlimit=nofile 5\nlimit=nofile 6", "a second limit 'nofile'"),
        ("node1:\nallow=/a", "allow: unknown key"),
        ("node1:\nstart=a/b", "start: 'a/b' is not a pattern"),
        ("node1:\nstop=nothing\nstop=/a", "'nothing' stands beside patterns"),
        ("node1:\nmaxProcesses=0", "maxProcesses: '0' is not a whole number from 1"),
        ("user=root", "user: unknown key"),
        ("certificate 1:\nstart=nothing", "is its place in a PEM file, which changes: name its fingerprint"),
        (f"[{FINGERPRINT}]:\nstart=/a\n{BARE}:\nuser=a", "a second section of the certificate"),
    ],
)
def test_a_mistake_is_an_error_that_names_file_and_line(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(SettingsError) as caught:
        policy(tmp_path, text)
    assert complaint in str(caught.value)
    assert str(caught.value).startswith(f"{tmp_path}/cmappserver.conf:")
    assert "secret" not in str(caught.value)


def test_a_certificate_is_found_by_fingerprint_or_alias_and_the_fingerprint_wins() -> None:
    by_print, by_alias, others = Grant(BARE, ("/a",)), Grant("node1", ("/b",)), Grant("others", ())
    aliases = {FINGERPRINT: "Node1", OTHER: None}
    assert Grants((by_alias, by_print), aliases).of(FINGERPRINT) == by_print
    assert Grants((by_alias,), aliases).of(FINGERPRINT) == by_alias
    assert Grants((by_alias,), aliases).of(OTHER) == EVERYTHING
    assert Grants((by_alias, others), aliases).of(OTHER) == others


def test_a_certificate_that_an_authority_issued_is_found_by_its_fingerprint() -> None:
    grant = Grant(BARE, ("/a",))
    assert Grants((grant,), {OTHER: "authority"}).of(FINGERPRINT) == grant


def test_a_name_that_is_a_fingerprint_is_nobodys_alias() -> None:
    grants = Grants((Grant(BARE, ("/a",)), Grant("others", ())), {OTHER: BARE})
    assert grants.of(OTHER).name == "others"
    assert grants.unknown == (BARE,)


def test_of_two_sections_of_one_certificate_that_of_the_fingerprint_counts_and_the_other_is_told_of() -> None:
    grants = Grants((Grant("node1", ("/b",)), Grant(BARE, ("/a",))), {FINGERPRINT: "node1"})
    assert grants.of(FINGERPRINT).start == ("/a",)
    assert grants.doubled == ("node1",)


def test_whoever_is_trusted_no_more_keeps_to_what_is_its_own_whatever_the_sections_say() -> None:
    grants = Grants((Grant("others"), Grant(BARE)), {}, [FINGERPRINT])
    assert grants.of(FINGERPRINT) == DISTRUSTED
    assert grants.of(OTHER).name == "others"


def test_sections_that_are_nobodys_are_known() -> None:
    grants = (Grant("node1"), Grant("node2"), Grant("others"), Grant(BARE))
    assert Grants(grants, {OTHER: "node2"}).unknown == ("node1", BARE)


def test_attach_and_stop_follow_start_where_nothing_is_said_of_them() -> None:
    assert Grant("n", ("/a",)).patterns("stop") == ("/a",)
    assert Grant("n", ("/a",), attach=("*",)).patterns("attach") == ("*",)
    assert Grant("n", stop=()).patterns("start") is None
    assert Grant("n", stop=()).patterns("stop") == ()


def test_what_is_in_force_is_shown() -> None:
    rule = Rule("r", ("/a", "/b"), "u", "g", "/d", (("KEY", "secret"),), (Limit("core", 0, UNLIMITED),))
    shown = "\n".join(show_policy(Policy(("/c",), (rule,), (Grant("n", ("/a",), (), None, "u", 3), Grant("m")))))
    assert "/a, /b: rule 'r', user u, group g, directory /d, environment KEY, limit core 0:unlimited" in shown
    assert "may be started /c" in shown
    assert "n: start /a, attach nothing, stop /a, as u only, 3 at once" in shown
    assert "m: everything" in shown
    assert "secret" not in shown
    assert "may be started any program" in "\n".join(show_policy(Policy()))


def test_attributes_come_back_as_they_went() -> None:
    attributes = Attributes(Account(5, 6, (6, 7)), "/d", (("A", "b=c"),), (Limit("nofile", 5, UNLIMITED),))
    for value in (attributes, Attributes()):
        assert attributes_from_json(json.loads(json.dumps(attributes_to_json(value)))) == value


@pytest.mark.parametrize(
    "change",
    [{"account": [1]}, {"account": "root"}, {"environment": [["A"]]}, {"limits": [["x", 1, 2]]}, {"directory": 5}],
)
def test_attributes_that_are_none_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="is no|lack"):
        attributes_from_json(attributes_to_json(Attributes()) | change)


def test_a_section_may_narrow_the_user_but_not_change_that_of_a_rule() -> None:
    rule = Rule("r", ("*",), user="oracle")
    assert effective_user(None, EVERYTHING) is None
    assert effective_user(rule, EVERYTHING) == "oracle"
    assert effective_user(None, Grant("n", user="web")) == "web"
    assert effective_user(rule, Grant("n", user="oracle")) == "oracle"
    with pytest.raises(CommandError, match="rule 'r' runs it as 'oracle', and this manager's section 'n'"):
        effective_user(rule, Grant("n", user="web"))


@pytest.mark.skipif(sys.platform == "win32", reason="users of that kind are those of POSIX")
def test_a_user_that_does_not_exist_is_refused_by_name() -> None:
    with pytest.raises(CommandError, match="no user 'nobody-here'") as caught:
        attributes_for(Rule("r", ("*",), user="nobody-here"), EVERYTHING)
    assert caught.value.code == "start-failed"
    with pytest.raises(CommandError, match="cannot be taken on|no group"):
        attributes_for(Rule("r", ("*",), group="4294967296000"), EVERYTHING)
    with pytest.raises(CommandError, match="no group 'nobody-here'"):
        attributes_for(Rule("r", ("*",), group="nobody-here"), EVERYTHING)


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() != 0, reason="another user is root's to give")
def test_a_user_brings_its_groups_and_home_and_the_rule_has_the_last_word() -> None:
    entry = pwd.getpwnam("daemon")
    rule = Rule("r", ("*",), user="daemon", directory="/tmp", environment=(("HOME", "/elsewhere"), ("A", "b")))
    found = attributes_for(rule, EVERYTHING)
    assert found.account == Account(entry.pw_uid, entry.pw_gid, tuple(os.getgrouplist("daemon", entry.pw_gid)))
    assert found.directory == "/tmp"
    variables = {"LOGNAME": "daemon", "SHELL": entry.pw_shell, "USER": "daemon", "HOME": "/elsewhere", "A": "b"}
    assert dict(found.environment) == variables
    by_number = attributes_for(Rule("r", ("*",), user=str(entry.pw_uid), group="0"), EVERYTHING).account
    assert by_number is not None
    assert (by_number.uid, by_number.gid) == (entry.pw_uid, 0)

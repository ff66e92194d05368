"""Which program a command means, and every reason why it may not be started."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from appserver.commands import CommandError, resolve_command
from appserver.rules import Grant, Policy, Rule

pytestmark = pytest.mark.skipif(os.name != "posix", reason="modes of POSIX files")


def program(path: Path, mode: int = 0o755) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(mode)
    return str(path)


def refusal(word: str, path: str = "/bin", allow: tuple[str, ...] = ()) -> tuple[str, str]:
    with pytest.raises(CommandError) as caught:
        resolve_command(word, {"PATH": path}, Policy(allow))
    return caught.value.code, str(caught.value)


def test_a_path_is_taken_as_it_is_and_never_looked_for(tmp_path: Path) -> None:
    path = program(tmp_path / "run me")
    assert resolve_command(path, {"PATH": "/nowhere"}).path == path
    assert resolve_command(f"{tmp_path}/./x/../run me", {}).path == path


def test_a_relative_path_starts_at_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = program(tmp_path / "app")
    monkeypatch.chdir(tmp_path)
    assert resolve_command(path.lstrip("/"), {}).path == path
    assert refusal("./app")[0] == "no-such-command"


def test_a_bare_word_is_the_first_executable_file_along_the_path(tmp_path: Path) -> None:
    program(tmp_path / "a" / "app", 0o644)
    (tmp_path / "b" / "app").mkdir(parents=True)
    wanted = program(tmp_path / "c" / "app")
    program(tmp_path / "d" / "app")
    search = ":".join(str(tmp_path / name) for name in "abcd")
    assert resolve_command("app", {"PATH": search}).path == wanted


@pytest.mark.parametrize("environment", [{}, {"PATH": ""}])
def test_without_a_path_the_systems_own_is_searched(environment: dict[str, str]) -> None:
    assert resolve_command("sh", environment).path in {"/bin/sh", "/usr/bin/sh"}


def test_an_empty_entry_of_the_path_is_the_working_directory_of_applications(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path / "only-here")
    monkeypatch.chdir(tmp_path)
    assert refusal("only-here", path=":/bin")[0] == "no-such-command"


def test_a_word_that_is_nowhere_is_refused_with_the_path_that_was_searched() -> None:
    code, text = refusal("no-such-thing", "/bin:/usr/bin")
    assert code == "no-such-command"
    assert "'no-such-thing'" in text
    assert "/bin:/usr/bin" in text


def test_every_way_a_path_can_be_wrong_has_its_code(tmp_path: Path) -> None:
    plain = program(tmp_path / "plain", 0o644)
    (tmp_path / "loop").symlink_to("loop")
    assert refusal(f"{tmp_path}/absent")[0] == "no-such-command"
    assert refusal(f"{plain}/below")[0] == "no-such-command"
    assert refusal(f"{tmp_path}/loop")[0] == "no-such-command"
    assert refusal(str(tmp_path))[0] == "is-a-directory"
    assert refusal(plain)[0] == "not-executable"
    assert refusal(f"{tmp_path}/{'x' * 300}")[0] == "start-failed"
    assert repr(plain) in refusal(plain)[1]


@pytest.mark.parametrize(
    ("patterns", "allowed"),
    [
        ([], True),
        (["{dir}/app"], True),
        (["{dir}/*"], True),
        (["/nowhere/*", "{dir}/a?p"], True),
        (["/nowhere/*"], False),
        (["app"], False),
        (["{dir}/APP"], False),
        ([""], False),
    ],
)
def test_where_there_is_an_allow_rule_nothing_else_may_be_started(
    tmp_path: Path, patterns: list[str], allowed: bool
) -> None:
    path = program(tmp_path / "app")
    rules = tuple(pattern.format(dir=os.path.realpath(tmp_path)) for pattern in patterns)
    if allowed:
        assert resolve_command(path, {}, Policy(rules)).path == path
    else:
        code, text = refusal(path, allow=rules)
        assert code == "rule"
        assert repr(path) in text


def test_a_rule_is_for_the_path_with_all_links_resolved(tmp_path: Path) -> None:
    path = program(tmp_path / "real" / "app")
    link = tmp_path / "allowed" / "app"
    link.parent.mkdir()
    link.symlink_to(path)
    root = os.path.realpath(tmp_path)
    assert refusal(str(link), allow=(f"{root}/allowed/*",))[0] == "rule"
    assert resolve_command(str(link), {}, Policy((f"{root}/real/*",))).path == str(link)


def test_links_in_a_rule_are_resolved_too(tmp_path: Path) -> None:
    path = program(tmp_path / "real" / "app")
    (tmp_path / "merged").symlink_to(tmp_path / "real")
    (tmp_path / "app").symlink_to(path)
    for rule in (f"{tmp_path}/merged/*", f"{tmp_path}/merged/a*", f"{tmp_path}/app"):
        assert resolve_command(path, {}, Policy((rule,))).path == path
    assert refusal(path, allow=(f"{tmp_path}/merged/b*",))[0] == "rule"


def test_the_first_rule_that_matches_counts_and_plain_patterns_come_last(tmp_path: Path) -> None:
    path = program(tmp_path / "app")
    narrow, wide = Rule("narrow", (path,), user="a"), Rule("wide", (f"{tmp_path}/*",), user="b")
    assert resolve_command(path, {}, Policy(("*",), (narrow, wide))).rule == narrow
    assert resolve_command(path, {}, Policy(("*",), (wide, narrow))).rule == wide
    other = program(tmp_path / "other")
    assert resolve_command(other, {}, Policy(("*",), (narrow,))).rule is None
    with pytest.raises(CommandError, match="no 'allow' rule of this guest matches"):
        resolve_command(other, {}, Policy((), (narrow,)))


def test_a_certificate_may_start_what_its_section_permits_and_the_guest_allows(tmp_path: Path) -> None:
    inside, outside = program(tmp_path / "in" / "app"), program(tmp_path / "out" / "app")
    grant = Grant("node1", start=(f"{tmp_path}/in/*",))
    assert resolve_command(inside, {}, Policy(), grant).path == inside
    with pytest.raises(CommandError, match="may not be started by this manager: its section 'node1'") as caught:
        resolve_command(outside, {}, Policy(), grant)
    assert caught.value.code == "rule"
    with pytest.raises(CommandError, match="no 'allow' rule of this guest"):
        resolve_command(inside, {}, Policy((outside,)), grant)
    with pytest.raises(CommandError, match="may not be started by this manager"):
        resolve_command(inside, {}, Policy(), Grant("node1", start=()))


def test_a_link_out_of_what_a_certificate_may_start_is_no_way_out(tmp_path: Path) -> None:
    outside = program(tmp_path / "out" / "app")
    link = tmp_path / "in" / "app"
    link.parent.mkdir()
    link.symlink_to(outside)
    for word in (str(link), f"{tmp_path}/in/../out/app"):
        with pytest.raises(CommandError, match="its section"):
            resolve_command(word, {}, Policy(), Grant("node1", start=(f"{tmp_path}/in/*",)))

"""The questions, their order, defaults and ends, over streams in memory; only a temporary directory is touched."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from appmgr.deploy.appmon import AppMonitor
from appmgr.deploy.closing import Surroundings
from appmgr.deploy.dialogue import Dialogue
from appmgr.deploy.errors import Abandoned, ContactFailed, DeployError
from appmgr.deploy.options import DeployOptions
from appmgr.deploy.serviceguard import Done, deploy

BEFORE = 'package_name slvm1\nnode_name node1\nnode_name node2\nservice_name slvm1\nservice_cmd "/vm slvm1"\n'

ANSWERS = ["y", "y", "y", "ping_mon", "", "/apps/ping_mon", "", "", "", "", "", "", "", "", "n"]
"""Those of the guide's transcript, up to the check of the communication."""

PROMPTS = [
    "Do you wish to continue? (y/n):",
    "Modify the packaged Virtual Machine Summarized above? (y/n):",
    "Configure an application monitor service? (y/n):",
    "Enter the name for this application monitor name [appmon0]:",
    "Hit return to confirm your entry:",
    "Enter the command line of the run command on the guest[]:",
    "Hit return to confirm this entry:",
    "Enter the number of seconds to elapse before timeout. [10]:",
    "Hit return to confirm this entry:",
    "Enter the number of time the application monitor should restart [none]:",
    "Hit return to confirm this entry:",
    "Enter the number of seconds to wait before terminating the application monitor [300]:",
    "Hit return to confirm this entry:",
    "Hit return to confirm this entry:",
    "Enter an additional application monitor? (y/n):",
    "Review and/or modify the package configuration file (optional)? (y/n):",
    "Copy the package files to each cluster member? (y/n):",
    "Use cmcheckconf check the package configuration file (optional)? (y/n):",
    "Apply the package configuration file to the cluster (optional)? (y/n):",
]
"""The guide's, without the one about distributed guests, which are no business of this program."""


@dataclass
class Scene:
    """A package on disk, and a host whose programs only take notes."""

    directory: Path
    path: Path
    programs: Path
    ran: list[list[str]] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    failing: str = ""
    contact: Exception | None = None
    out: io.StringIO = field(default_factory=io.StringIO)
    done: Done = field(default_factory=Done)

    def play(self, answers: Sequence[str], **changes: object) -> int:
        options = DeployOptions("slvm1", "slvm1", None, directory=str(self.directory), **changes)  # type: ignore[arg-type]  # one of its fields each
        host = Surroundings("node1", {"PATH": str(self.programs), "EDITOR": "ed -s"}, self.run)
        self.out.seek(0)
        self.out.truncate()
        dialogue = Dialogue(io.StringIO("".join(f"{answer}\n" for answer in answers)), self.out)
        return deploy(options, dialogue, host, self.check, self.done)

    def check(self, node: str, _config: str | None, progress: Callable[[float], None]) -> None:
        self.asked.append(node)
        progress(2.0)
        if self.contact is not None:
            raise self.contact

    def run(self, words: Sequence[str]) -> int:
        self.ran.append([Path(words[0]).name, *words[1:]])
        return int(Path(words[0]).name == self.failing)

    def prompts(self) -> list[str]:
        found = re.findall(r"^(?:.*\(y/n\)|Hit return .*?|Enter .*\]):", self.out.getvalue(), re.MULTILINE)
        return [str(prompt) for prompt in found]


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    monkeypatch.setattr("appmgr.deploy.programs.SEARCH_DIRECTORIES", ())
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("scp", "cmcheckconf", "cmapplyconf"):
        (programs / name).write_text("#!/bin/false\n")
        (programs / name).chmod(0o755)
    directory = tmp_path / "cmcluster"
    path = directory / "slvm1" / "slvm1.conf"
    path.parent.mkdir(parents=True)
    path.write_text(BEFORE)
    return Scene(directory, path, programs)


def test_the_guides_transcript_is_followed_prompt_by_prompt(scene: Scene) -> None:
    assert scene.play([*ANSWERS, "y", "y", "y", "y"]) == 0
    assert scene.prompts() == PROMPTS
    said = scene.out.getvalue()
    order = [
        "Checking communications with the application monitor server on : slvm1\n",
        "+service_cmd",
        "Merging application monitor service with existing package configuration file\n",
        f"Invoking editor : ed on file {scene.path}\n",
        "Use the cmapplyconf command to apply the configuration\n",
        "Before running this package:\n1. ",
    ]
    places = [said.index(part) for part in order]
    assert places == sorted(places)
    path = str(scene.path)
    assert scene.ran == [
        ["ed", "-s", path],
        ["scp", "-p", path, f"node2:{path}"],
        ["cmcheckconf", "-P", path],
        ["cmapplyconf", "-P", path],
    ]
    assert scene.asked == ["slvm1"]


def test_the_service_of_the_transcript_is_the_one_in_the_guides_appendix(scene: Scene) -> None:
    scene.play([*ANSWERS, "n", "n", "n", "n"])
    assert scene.path.read_text() == BEFORE + (
        "\n#Guest Application Monitor\n"
        "service_name                    ping_mon\n"
        "service_cmd                     "
        '"/usr/sbin/cmappmgr -node slvm1 -cmappserver_timeout 10 -service /apps/ping_mon"\n'
        "service_restart                 none\n"
        "service_fail_fast_enabled       no\n"
        "service_halt_timeout            300\n"
    )
    assert not scene.ran


def test_the_same_answers_a_second_time_change_nothing(scene: Scene) -> None:
    scene.play([*ANSWERS, "n", "n", "n", "n"])
    after = scene.path.read_bytes()
    assert scene.play(ANSWERS) == 0
    assert scene.path.read_bytes() == after
    assert scene.out.getvalue().endswith("The package has the service ping_mon already, just so.\nNothing to change.\n")
    assert len(list((scene.path.parent / ".backup").iterdir())) == 1


@pytest.mark.parametrize("count", range(len(ANSWERS)))
def test_an_end_of_input_at_any_question_changes_nothing(scene: Scene, count: int) -> None:
    with pytest.raises(Abandoned, match="ended in the middle"):
        scene.play(ANSWERS[:count])
    assert scene.path.read_text() == BEFORE
    assert scene.done.describe() == "nothing was changed"


@pytest.mark.parametrize("count", range(3))
def test_a_no_to_any_of_the_first_questions_changes_nothing(scene: Scene, count: int) -> None:
    assert scene.play([*["y"] * count, "n"]) == 0
    assert scene.path.read_text() == BEFORE


def test_an_end_of_input_behind_the_change_tells_of_the_change(scene: Scene) -> None:
    with pytest.raises(Abandoned):
        scene.play(ANSWERS)
    assert scene.done.describe() == f"{scene.path} was changed"


def test_a_value_that_cannot_be_is_asked_for_again(scene: Scene) -> None:
    answers = [
        *ANSWERS[:3],
        "a b",
        "x" * 40,
        "web",
        "no",
        "web2",
        "",
        "",
        "/apps/web",
        "",
        "0",
        "60",
        "",
        "often",
        "3",
        "",
    ]
    assert scene.play([*answers, "5000", "20", "", "", "n", "n", "n", "n", "n"]) == 0
    said = scene.out.getvalue()
    assert said.count("This cannot be: ") == 6
    assert "-service /apps/web" in scene.path.read_text()
    assert "service_name                    web2\n" in scene.path.read_text()


def test_senseless_answers_come_to_an_end(scene: Scene) -> None:
    with pytest.raises(Abandoned, match="no y or n in 10 answers"):
        scene.play(["maybe"] * 1000)
    with pytest.raises(Abandoned, match="no acceptable answer in 10 attempts"):
        scene.play([*"yyy", *["a b"] * 1000])


def test_the_default_name_is_the_first_that_is_free(scene: Scene) -> None:
    scene.path.write_text(f"{BEFORE}service_name appmon0\nservice_cmd /x\n")
    answers = [*"yyy", "", "", "/apps/b", *[""] * 8]
    again = ["y", "", "", "/apps/c", *[""] * 8]
    assert scene.play([*answers, *again, "n", "n", "n", "n", "n"]) == 0
    assert re.findall(r"\[(appmon\d)\]", scene.out.getvalue()) == ["appmon1", "appmon2"]


def test_a_monitor_that_is_taken_is_refused_before_the_next_question(scene: Scene) -> None:
    taken = [*"yyy", "slvm1", "", "/apps/x", *[""] * 8]
    assert scene.play([*taken, "b", "", "/apps/x", *[""] * 8, "n", "n", "n", "n", "n"]) == 0
    assert "This cannot be: the package has a service 'slvm1' already, with other values" in scene.out.getvalue()
    assert "service_name                    b\n" in scene.path.read_text()


def test_without_contact_a_person_decides(scene: Scene) -> None:
    scene.contact = ContactFailed("Connection refused (errno:111)")
    assert scene.play([*ANSWERS, "n"]) == 1
    assert scene.path.read_text() == BEFORE
    assert (
        "no contact with the application monitor server on slvm1: Connection refused (errno:111)"
        in scene.out.getvalue()
    )
    assert scene.play([*ANSWERS, "y", "n", "n", "n", "n"]) == 0
    assert scene.path.read_text() != BEFORE


GIVEN = (AppMonitor("ping_mon", "/apps/ping_mon"),)


def quiet(scene: Scene, answers: Sequence[str] = (), **changes: object) -> int:
    fields = {"monitors": GIVEN, "quiet": True} | changes
    options = DeployOptions("slvm1", "slvm1", directory=str(scene.directory), **fields)  # type: ignore[arg-type]  # its fields
    host = Surroundings("node1", {"PATH": str(scene.programs)}, scene.run)
    dialogue = Dialogue(io.StringIO("".join(f"{answer}\n" for answer in answers)), scene.out)
    return deploy(options, dialogue, host, scene.check, scene.done)


def test_quietly_nothing_is_asked_nor_run(scene: Scene) -> None:
    assert quiet(scene) == 0
    assert not scene.prompts()
    assert not scene.ran
    assert "ping_mon" in scene.path.read_text()
    assert quiet(scene) == 0
    assert scene.out.getvalue().endswith("Nothing to change.\n")


def test_quietly_nothing_is_changed_without_contact(scene: Scene) -> None:
    scene.contact = ContactFailed("Connection refused (errno:111)")
    with pytest.raises(ContactFailed, match="on slvm1: Connection refused"):
        quiet(scene)
    assert scene.path.read_text() == BEFORE


def test_only_showing_changes_nothing_even_without_contact(scene: Scene) -> None:
    scene.contact = ContactFailed("Connection refused (errno:111)")
    assert quiet(scene, only_show=True) == 0
    said = scene.out.getvalue()
    assert "Warning: no contact" in said
    assert "+service_name                    ping_mon\n" in said
    assert said.endswith("Only shown: nothing was changed.\n")
    assert scene.path.read_text() == BEFORE
    assert not (scene.path.parent / ".backup").exists()


def test_monitors_of_the_command_line_are_not_asked_for_again(scene: Scene) -> None:
    assert quiet(scene, ["y", "y", "n", "n", "n", "n"], quiet=False) == 0
    assert scene.prompts() == [*PROMPTS[:2], *PROMPTS[-4:]]


def test_what_cmcheckconf_refuses_is_not_applied(scene: Scene) -> None:
    scene.failing = "cmcheckconf"
    assert scene.play([*ANSWERS, "n", "n", "y"]) == 1
    assert [words[0] for words in scene.ran] == ["cmcheckconf"]
    assert "cmcheckconf -P" in scene.out.getvalue()


def test_what_is_not_on_this_host_is_not_offered(scene: Scene) -> None:
    for program in scene.programs.iterdir():
        program.unlink()
    assert scene.play([*ANSWERS, "n"]) == 0
    assert scene.prompts() == PROMPTS[:16]


def test_a_failed_copy_is_told_and_the_rest_goes_on(scene: Scene) -> None:
    scene.failing = "scp"
    assert scene.play([*ANSWERS, "n", "y", "y", "y"]) == 1
    assert [words[0] for words in scene.ran] == ["scp", "cmcheckconf", "cmapplyconf"]


def test_an_unknown_package_is_refused_by_its_path(scene: Scene) -> None:
    scene.path.unlink()
    with pytest.raises(DeployError, match=re.escape(str(scene.path))):
        scene.play(ANSWERS)

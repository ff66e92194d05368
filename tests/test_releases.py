"""Versions that were released: what they said is understood today, and what is said today was understood by them.

Their rules are theirs: where today's words are judged, it is by the code in the wheel that is kept of the release.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import trio.testing
from released import VERSIONS, Story, judge_program, recorded_state, stories, wheel
from replaying import ManagerReplay, replay_server, says_at_least
from supervised import FakeWatcher, Guest, serving

from appmgr.manager import Finish, Log, Manager, Send
from appmgr.options import ManagerOptions, parse_options
from appserver.codec import decode, encode
from appserver.effects import TellEnded, TellRunning, Terms
from appserver.identity import Service
from appserver.messages import Error, Unknown
from appserver.outcome import Exited
from appserver.records import Records
from appserver.version import VERSION

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the records are of Linux, the commands POSIX ones")

STORIES = [(version, story) for version in VERSIONS for story in stories(version)]
every_story = pytest.mark.parametrize(
    ("version", "story"), STORIES, ids=[f"{version}: {story.name}" for version, story in STORIES]
)
every_version = pytest.mark.parametrize("version", VERSIONS)
LATER = {"dance", "attach"}
"""What somebody said by hand, as a later version might."""


def judged(version: str, *jobs: dict[str, object]) -> list[list[str]]:
    """Have a release judge conversations by its own code; give what it takes each message for."""
    words = [sys.executable, "-I", "-S", "-c", judge_program(), str(wheel(version))]
    done = subprocess.run(words, input=json.dumps(jobs), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    answers: list[list[str]] = json.loads(done.stdout)
    return answers


def test_the_last_release_is_another_than_the_next() -> None:
    assert VERSIONS
    assert VERSION not in VERSIONS, "this version is released: count on"


@every_story
def test_what_was_said_then_is_read_without_loss(version: str, story: Story) -> None:
    del version
    for line in [*story.said("S"), *story.said("M")]:
        message = decode(line.encode())
        if isinstance(message, Unknown):
            assert message.type in LATER
        else:
            recorded = json.loads(line)
            recorded.pop("mood", None)  # of a later version
            assert says_at_least(json.loads(encode(message)), recorded)


@every_story
def test_todays_manager_plays_its_part_in_the_stories_of_a_release(version: str, story: Story) -> None:
    jobs: list[dict[str, object]] = []
    for words, steps in story.managers():
        replay = ManagerReplay(words, steps)
        replay.play()
        assert replay.finished is not None
        jobs += [{"role": "server", "own": one.greeting, "heard": one.by_manager} for one in replay.conversations]
    for took in judged(version, *jobs):
        assert took[0] == "Hello"
        assert "Unknown" not in took


@every_story
async def test_todays_server_plays_its_part_in_the_stories_of_a_release(
    version: str, story: Story, tmp_path: Path, mock_clock: trio.testing.MockClock
) -> None:
    mock_clock.autojump_threshold = 0.5  # only a failure waits
    conversations = await replay_server(story, tmp_path)
    jobs: list[dict[str, object]] = [
        {"role": "manager", "own": said.hello, "heard": said.by_server} for said in conversations
    ]
    for took in judged(version, *jobs):
        assert took[0] == "Greeting"
        assert "Unknown" not in took


@every_version
@pytest.mark.parametrize("action", ["attach", "stop"])
def test_a_release_without_attach_starts_nothing_and_the_manager_says_what_to_do(version: str, action: str) -> None:
    answers = [
        decode(line.encode())
        for story in stories(version)
        for line in story.said("S")
        if "'attach'" in line and json.loads(line)["type"] == "error"
    ]
    if not answers:
        pytest.skip(f"{version} knows attach")
    options = parse_options(["-node", "g1", "--action", action, "-service", "/bin/true"])
    assert isinstance(options, ManagerOptions)
    manager = Manager(options, "a" * 32, 0.0)
    said = [encode(one.message).decode().rstrip() for one in manager.connected(0.0) if isinstance(one, Send)]
    greeting, hello = stories(version)[0].said("S")[0], stories(version)[0].said("M")[0]
    (took,) = judged(version, {"role": "server", "own": greeting, "heard": [hello, *said]})
    assert took[1] == "Unknown"
    assert "Run" not in took
    assert isinstance(answers[0], Error)
    actions = manager.received(answers[0], 0.1)
    assert Finish(1) in actions
    (text,) = (one.text for one in actions if isinstance(one, Log))
    assert text.endswith("a server of before that message has to be upgraded, or be told the run (--run-id)")


# Records.


@every_version
async def test_records_of_a_release_are_restored(version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded_state(version, tmp_path / "state")
    guest = Guest(tmp_path, is_prepared=False)
    boots = {record.read_request().boot for record in guest.records.all()}
    (boot,) = boots
    monkeypatch.setattr("appserver.recovery.boot_id", lambda: boot)
    runs = phases(guest.records)
    assert set(runs) == {"starting", "running", "stopping", "left", "collected"}
    guest.processes.watched = {runs["running"], runs["stopping"]}
    guest.records.prepare()
    ((alias, target),) = guest.records.aliases()
    assert target == runs["running"]
    async with serving(guest):
        assert "damaged" not in guest.log.text
        assert guest.log.count("dropped a start that was asked for, but not made") == 1
        for run_id in (runs["running"], alias, runs["stopping"]):
            watcher = FakeWatcher()
            await guest.supervisor.watch(watcher, run_id, Terms())
            told = await watcher.next()
            assert isinstance(told, TellRunning)
            assert told.run.pid == guest.records.get(told.run.run_id).read_state().pid
        for run_id, code in ((runs["left"], 4), (runs["collected"], 3)):
            watcher = FakeWatcher()
            await guest.supervisor.watch(watcher, run_id, Terms())
            ended = await watcher.next()
            assert isinstance(ended, TellEnded)
            assert isinstance(ended.outcome, Exited)
            assert ended.outcome.code == code
        stopped = guest.supervisor.find(runs["stopping"])
        assert stopped is not None
        assert stopped.stop_ordered


@every_version
def test_records_of_today_are_read_by_a_release(version: str, tmp_path: Path) -> None:
    recorded_state(version, tmp_path / "then")
    then, now = Records(str(tmp_path / "then")), Records(str(tmp_path / "now"))
    now.prepare()
    for record in then.all():
        request = record.read_request()
        now.create(replace(request, service=Service("line", ("/bin/true",))), record.read_state())
    (took,) = judged(version, {"state_dir": now.state_dir})
    assert sorted(took) == sorted(f"{record.run_id} {record.read_state().phase}" for record in then.all())


def phases(records: Records) -> dict[str, str]:
    found: dict[str, str] = {}
    for record in records.all():
        state = record.read_state()
        name = "stopping" if state.stop is not None else str(state.phase)
        if name == "ended":
            name = "collected" if record.is_collected() else "left"
        found[name] = record.run_id
    return found

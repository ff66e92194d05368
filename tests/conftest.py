from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import hypothesis
import network_figures
import pytest
from pair import Guest, make_keys, open_guest
from scene import network as network
from scene import row as row
from scene import scene as scene

from appserver import retention

# An example that takes long on a busy machine is no failure.
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keys of one host and one guest, made once."""
    return make_keys(tmp_path_factory.mktemp("keys"))


@pytest.fixture
def guest(tmp_path: Path, keys: Path) -> Iterator[Guest]:
    """A guest whose server listens; everything of it is ended with the test."""
    with open_guest(tmp_path / "guest", keys) as guest:
        guest.start_server()
        yield guest


@pytest.fixture
def one_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the last outcome of each service is kept."""
    monkeypatch.setattr(retention, "KEPT_OF_A_SERVICE", 1)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    network_figures.publish(report for reports in terminalreporter.stats.values() for report in reports)


@pytest.fixture
def idle(tmp_path: Path, keys: Path) -> Iterator[Guest]:
    """A guest without a server yet; everything of it is ended with the test."""
    with open_guest(tmp_path / "guest", keys) as guest:
        yield guest

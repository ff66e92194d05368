"""Choose how processes are started and watched on this system.

On Linux a launcher and its waiters do it (`waited`), and an outcome survives the server. Elsewhere the server itself is
the parent, by way of psutil (`portable`), and what cannot be known there is `Lost`, never a guess.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

from appserver.processes import Processes
from appserver.records import Records
from appserver.report import Report


def open_processes(records: Records, environment: Mapping[str, str], report: Report) -> Processes:
    """Choose what this system allows. `environment` is what applications get."""
    if sys.platform == "linux" and hasattr(os, "pidfd_open"):
        from appserver.waited import WaitedProcesses

        return WaitedProcesses(records, environment, report)
    from appserver.portable import PortableProcesses

    return PortableProcesses(records, environment)


async def wait_for_former(state_dir: str, report: Report) -> None:
    """Make sure that nobody whom a former server of the state directory has left starts anything any more. Before
    anything is followed. Raises StateDirError where somebody does not leave.
    """
    if sys.platform == "linux" and hasattr(os, "pidfd_open"):
        from appserver import launching

        await launching.wait_for_former(state_dir, report)

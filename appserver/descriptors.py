"""How many descriptors the server needs and may have.

The limit that most systems give a service is 1024, enough for `maxProcesses=30` and not for 1000. So the server raises
its own soft limit as far as the hard one allows. Applications get the limit that the server was given: many programs
close or walk all descriptors that they may have, and `select` breaks beyond 1024.

Where the limit is low all the same, strangers have a share of it only: managers and starts need the rest.
"""

from __future__ import annotations

import os
import sys

from appserver.report import Report
from appserver.settings import ServerSettings

BASE_DESCRIPTORS = 64
"""The listening sockets, the log, the loop's own, a reload's, and the few seconds of a start or an end."""

DESCRIPTORS_PER_PROCESS = 8
"""Four sessions (`listener.SESSIONS_PER_PROCESS`), the waiter's connection, two pidfds, and one that comes and goes."""

STRANGERS = 128
"""Half-open peers, and refused ones that linger: `strangers.MAX_HALF_OPEN` and `refusals.MAX_LINGERING`."""

SHARE_OF_STRANGERS = 8
"""Half-open peers have one in so many of all descriptors at most, and refused ones that linger another."""


def wanted(max_processes: int) -> int:
    """Tell how many descriptors a server with so many processes can come to need."""
    return BASE_DESCRIPTORS + STRANGERS + DESCRIPTORS_PER_PROCESS * max_processes


def strangers_share(most: int) -> int:
    """Give how many descriptors out of `most` one kind of stranger may have under the limit that is in force."""
    if sys.platform == "win32":
        return most
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return most if soft == resource.RLIM_INFINITY else max(1, min(most, soft // SHARE_OF_STRANGERS))


def raise_limit(settings: ServerSettings, report: Report) -> None:
    """Raise our soft limit to what these settings need; log where the hard limit is below that.

    Call it when the launcher's owner has seen the limit we were given (`launching`): that one is the applications'.
    """
    if sys.platform != "linux" or not hasattr(os, "pidfd_open"):
        return  # applications are our own children there (`platforms`), and would inherit it
    import resource

    need = wanted(settings.max_processes)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    may = need if hard == resource.RLIM_INFINITY else min(need, hard)
    if soft != resource.RLIM_INFINITY and soft < may:
        resource.setrlimit(resource.RLIMIT_NOFILE, (may, hard))
    if may < need:
        report.warning(
            f"{may} descriptors are all this server may have, and maxProcesses={settings.max_processes} can come to "
            f"need {need}: allow more (LimitNOFILE= of its unit, or ulimit -Hn), or lower maxProcesses"
        )

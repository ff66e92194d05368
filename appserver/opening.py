"""Start an application as a child of the server, for systems without a launcher, with what the contract grants it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping

import trio

from appserver import runlog
from appserver.execerrors import explain_exec_error
from appserver.outcome import MAX_EXIT_CODE, Exited, Outcome, Signaled
from appserver.recordformat import Request


def outcome_from_returncode(code: int) -> Outcome:
    """Translate what subprocess gives: below zero it is a signal on POSIX, a code read as signed on Windows."""
    if code < 0 and sys.platform != "win32":
        return Signaled(-code)
    return Exited(code & MAX_EXIT_CODE)


async def open_process(request: Request, environment: Mapping[str, str]) -> trio.Process:
    """Start what is requested: a session of its own, output to its log, `/` as working directory, umask 022.

    What its rule sets comes on top. Raises OSError, or ValueError for what this system cannot pass on. A start under
    way is not cancelled.
    """
    attributes = request.attributes
    if attributes.limits:
        raise ValueError("its rule sets limits, and on this system nobody can set them between fork and exec")
    environment = {**environment, **dict(attributes.environment)}
    log_fd = _open_log(request.log_path)
    try:
        if sys.platform == "win32":
            return await trio.lowlevel.open_process(
                request.argv,
                executable=request.executable,
                stdin=subprocess.DEVNULL,
                stdout=log_fd,
                stderr=log_fd,
                cwd=attributes.directory or os.environ.get("SYSTEMDRIVE", "C:") + "\\",
                env=environment,
                creationflags=subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW,
            )
        account = attributes.account
        if account is not None:
            os.fchown(log_fd, account.uid, account.gid)  # its owner may open /dev/stderr anew, as scripts do
        return await trio.lowlevel.open_process(
            request.argv,
            executable=request.executable,
            stdin=subprocess.DEVNULL,
            stdout=log_fd,
            stderr=log_fd,
            cwd=attributes.directory or "/",
            env=environment,
            umask=0o022,
            start_new_session=True,
            user=account.uid if account else None,
            group=account.gid if account else None,
            extra_groups=account.groups if account else None,
        )
    finally:
        os.close(log_fd)


def _open_log(path: str) -> int:
    if sys.platform != "win32":
        return runlog.open_log(path)
    # The C library's O_APPEND is not inherited there, and a child would write on behind the end of a log that was
    # trimmed: only a handle that may append and nothing else always writes to the end.
    import _winapi
    import msvcrt

    append_data, synchronize, share_all, open_always = 0x4, 0x100000, 0x7, 4
    handle = _winapi.CreateFile(path, append_data | synchronize, share_all, 0, open_always, 0, 0)
    return msvcrt.open_osfhandle(handle, os.O_APPEND)


def refusal(request: Request, error: OSError | ValueError) -> tuple[str, str]:
    """Give the code on the wire and the text for a start that failed."""
    executable, directory = request.executable, request.attributes.directory
    number = error.errno if isinstance(error, OSError) else None
    if isinstance(error, OSError) and directory is not None and error.filename == directory:
        return "start-failed", f"the directory {directory!r} that its rule names cannot be entered: {error.strerror}"
    if os.path.isdir(executable):
        return "is-a-directory", f"{executable!r} is a directory, a command was expected"
    if number is None:
        return "start-failed", f"{executable!r} cannot be executed: {error}"
    code, text = explain_exec_error(number)
    return code, f"{executable!r} cannot be executed: {text} (errno:{number})"

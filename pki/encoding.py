"""One encoding for all programs, whatever the locale: UTF-8, with `surrogateescape` for what is none.

Words come over the wire and from the configuration as UTF-8, and the launcher and its waiters, which know no locale,
take them so. A program under a locale of ISO 8859-1 would encode the same path otherwise, and find another file or
none. Python decides on its encoding as it starts, so the way out is to start again.
"""

from __future__ import annotations

import os
import sys


def restart_in_utf8() -> None:
    """Execute this process's own command line anew, in Python's UTF-8 mode, where the locale has another encoding.

    The pid, the environment and the descriptors stay. To be called first of all, by a program for its own process.
    """
    if sys.platform != "win32" and sys.getfilesystemencoding().lower() not in {"utf-8", "utf8"}:
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])  # noqa: S606  (no shell)

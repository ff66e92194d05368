"""`cmappserver` under coverage, with a launcher and waiters that are measured too.

They run without `site` and import the standard library only, so nothing measures them by itself. Started in place of
`python -m appserver` where the tests themselves are measured.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import coverage

from appserver import launching
from appserver.cli import main

_TREE = Path(__file__).parent.parent

_MEASURED = f"""
import os, sys
os.chdir(STATE_DIR)
sys.path += [{str(Path(coverage.__file__).parent.parent)!r}, {str(_TREE)!r}]
import coverage
coverage.Coverage(
    config_file={str(_TREE / "pyproject.toml")!r}, data_file={str(_TREE / ".coverage")!r}, data_suffix=True
).start()
from appserver.launcher import main
main()
"""

launching._BOOTSTRAP = _MEASURED.replace("{", "{{").replace("}", "}}").replace("STATE_DIR", "{state_dir!r}")

status = main()
sys.stdout.flush()
sys.stderr.flush()
os._exit(status)

"""`python -m appmgr.deploy`."""

from __future__ import annotations

import sys

from appmgr.deploy.cli import main

if __name__ == "__main__":
    sys.exit(main())

"""`python -m appserver` is `cmappserver`."""

import sys

from appserver.cli import main

sys.exit(main())

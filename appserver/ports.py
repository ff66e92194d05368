"""The port that both programs mean where nothing else is said, and which ports there are (contract, sections 1 and 2).

A module of its own, so that a manager does not import how the server is configured.
"""

from __future__ import annotations

DEFAULT_PORT = 5315
MAX_PORT = 65535

"""The version of this release, told to the peer and by `--version`."""

VERSION = "0.2.0"


def software(program: str) -> str:
    """Name a program with its version, as in the greeting: `cmappserver 0.2.0`."""
    return f"{program} {VERSION}"

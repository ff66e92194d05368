"""Debian with systemd as process 1, in a container: built once, copied for each use, gone with whoever started it."""

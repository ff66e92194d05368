"""What a rule of the guest's file sets for the processes it allows: user, groups, directory, environment, limits.

The names of the file become numbers and absolute values in the server, once for each start (`runas`); what is on
record is what the waiter, which looks nothing up, gives the application. Pure; standard library only: waiters import
this.
"""

from __future__ import annotations

from pki.frozen import dataclass
from pki.typed import final

UNLIMITED = -1
"""As a soft or hard limit: none."""

LIMITS = ("as", "core", "cpu", "data", "fsize", "memlock", "nofile", "nproc", "stack")
"""Resource limits by the names of setrlimit(2), in lower case; those that every Linux and most other systems have."""


@final
@dataclass(frozen=True, slots=True)
class Limit:
    """One resource limit, in the units of setrlimit(2) (bytes, seconds, a count); `UNLIMITED` for none."""

    name: str
    soft: int
    hard: int


@final
@dataclass(frozen=True, slots=True)
class Account:
    """Whom a process runs as, in numbers: user, group, and all groups."""

    uid: int
    gid: int
    groups: tuple[int, ...]


@final
@dataclass(frozen=True, slots=True)
class Attributes:
    """What an application gets that differs from what the server gives by itself.

    `account` is None for the server's own user, `directory` for `/`. `environment` is added to what applications get,
    and wins over it.
    """

    account: Account | None = None
    directory: str | None = None
    environment: tuple[tuple[str, str], ...] = ()
    limits: tuple[Limit, ...] = ()


PLAIN = Attributes()


def attributes_to_json(attributes: Attributes) -> dict[str, object]:
    """Turn attributes into plain JSON values."""
    account = attributes.account
    return {
        "account": None if account is None else [account.uid, account.gid, list(account.groups)],
        "directory": attributes.directory,
        "environment": [list(pair) for pair in attributes.environment],
        "limits": [[limit.name, limit.soft, limit.hard] for limit in attributes.limits],
    }


def attributes_from_json(value: object) -> Attributes:
    """Read what `attributes_to_json` made. Raises ValueError for anything else."""
    match value:
        case {
            "account": account,
            "directory": (str() | None) as directory,
            "environment": [*pairs],
            "limits": [*limits],
        }:
            return Attributes(
                _account(account), directory, tuple(map(_pair, pairs)), tuple(_limit(limit) for limit in limits)
            )
        case _:
            raise ValueError("the attributes of the process lack a field")


def _account(value: object) -> Account | None:
    match value:
        case None:
            return None
        case [int(uid), int(gid), [*groups]]:
            return Account(uid, gid, tuple(group for group in groups if isinstance(group, int)))
        case _:
            raise ValueError(f"{value!r:.60} is no account of user, group and groups")


def _pair(value: object) -> tuple[str, str]:
    match value:
        case [str(name), str(text)]:
            return name, text
        case _:
            raise ValueError(f"{value!r:.60} is no variable of an environment")


def _limit(value: object) -> Limit:
    match value:
        case [str(name), int(soft), int(hard)] if name in LIMITS:
            return Limit(name, soft, hard)
        case _:
            raise ValueError(f"{value!r:.60} is no resource limit")

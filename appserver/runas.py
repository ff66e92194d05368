"""Turn what a rule names (a user, a group) into what a process is given (numbers, HOME).

The system's user database may be a directory server far away, so it is asked in a thread of the server, for each start
anew; neither the launcher nor a waiter ever asks.
"""

from __future__ import annotations

import os
import sys
from typing import TypeAlias

from appserver.attributes import Account, Attributes
from appserver.commands import CommandError
from appserver.rules import EVERYTHING, Grant, Policy, Rule


def odd_rules(policy: Policy) -> list[str]:
    """Say which rules will refuse all that they allow, since their user or group is not to be had. Blocks, as above."""
    found: list[str] = []
    for rule in policy.rules:
        try:
            attributes_for(rule, EVERYTHING)
        except CommandError as error:
            found.append(f"the rule {rule.name!r} refuses every start: {error}")
    return found


_Variables: TypeAlias = tuple[tuple[str, str], ...]


def effective_user(rule: Rule | None, grant: Grant) -> str | None:
    """Say as which user a rule and a grant have an application run; None for the server's own. Pure.

    A grant with a user of its own forbids what a rule has run as another. Raises CommandError then.
    """
    by_rule = rule.user if rule else None
    if grant.user is not None and by_rule is not None and grant.user != by_rule:
        assert rule is not None
        text = (
            f"the rule {rule.name!r} runs it as {by_rule!r}, and this manager's section {grant.name!r} "
            f"permits {grant.user!r} only"
        )
        raise CommandError("rule", text)
    return by_rule if by_rule is not None else grant.user


def attributes_for(rule: Rule | None, grant: Grant) -> Attributes:
    """Give the attributes of the process to be started. Blocks on the user database. Raises CommandError."""
    user = effective_user(rule, grant)
    group = rule.group if rule else None
    account, environment = _account(user, group) if user is not None or group is not None else (None, ())
    if rule is None:
        return Attributes(account, environment=environment)
    given = {name for name, _ in rule.environment}
    kept = tuple((name, text) for name, text in environment if name not in given)
    return Attributes(account, rule.directory, (*kept, *rule.environment), rule.limits)


if sys.platform == "win32":

    def own_user() -> str:
        """Name the user that the server runs as."""
        return os.environ.get("USERNAME", "")

    def _account(user: str | None, group: str | None) -> tuple[Account | None, _Variables]:
        raise CommandError("start-failed", f"this system has no user {user!r} and group {group!r} to run it as")

else:
    import grp
    import pwd

    def own_user() -> str:
        """Name the user that the server runs as."""
        try:
            return pwd.getpwuid(os.geteuid()).pw_name
        except KeyError:
            return str(os.geteuid())

    def _account(user: str | None, group: str | None) -> tuple[Account | None, _Variables]:
        entry = _entry_of(user if user is not None else str(os.geteuid()))
        gid = _group_id(group) if group is not None else entry.pw_gid
        try:
            groups = tuple(os.getgrouplist(entry.pw_name, gid))
        except (OverflowError, OSError) as error:
            raise CommandError("start-failed", f"the group {group!r} cannot be taken on: {error}") from error
        account: Account | None = Account(entry.pw_uid, gid, groups)
        if os.geteuid() != 0:
            if (entry.pw_uid, gid) != (os.geteuid(), os.getegid()):
                text = f"only root can start anything as another user, and the server runs as {own_user()!r}"
                raise CommandError("start-failed", text)
            account = None  # it is the server's own anyway, and nobody but root may say so
        if user is None:
            return account, ()
        home, shell, name = entry.pw_dir, entry.pw_shell, entry.pw_name
        return account, (("HOME", home), ("LOGNAME", name), ("SHELL", shell), ("USER", name))

    def _entry_of(user: str) -> pwd.struct_passwd:
        try:
            return pwd.getpwuid(int(user)) if user.isascii() and user.isdigit() else pwd.getpwnam(user)
        except (KeyError, OverflowError) as error:
            raise CommandError("start-failed", f"there is no user {user!r} in this guest") from error

    def _group_id(group: str) -> int:
        if group.isascii() and group.isdigit():
            return int(group)
        try:
            return grp.getgrnam(group).gr_gid
        except KeyError as error:
            raise CommandError("start-failed", f"there is no group {group!r} in this guest") from error

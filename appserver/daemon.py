"""The daemon from its start to its end: puts the rooms together, heeds signals, reloads.

Order of the start: lock the state directory, see that nobody of a former server starts anything there any more, find
again what runs, listen, and only then say so, to the log and to systemd. Until then a TERM ends the process at once
(see `cli`); there is nobody to be let go of. Order of the end: stop listening, let the managers go, let go of the
applications. A second TERM skips the goodbyes.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterable
from functools import partial
from typing import final

import trio

from appserver.descriptors import raise_limit
from appserver.environment import application_environment
from appserver.latelog import written_late
from appserver.listener import Listener, Trust
from appserver.notify import notify
from appserver.platforms import open_processes, wait_for_former
from appserver.records import Records
from appserver.report import Report
from appserver.rules import Grants
from appserver.settings import ServerSettings
from appserver.sockets import address_of, open_listening_sockets
from appserver.statelock import StateDirError, locked_state_dir, make_log_dir
from appserver.supervisor import Supervisor
from appserver.version import VERSION
from appserver.watchdog import serve_watchdog
from pki.contexts import load_material, server_context
from pki.der import fingerprint
from pki.errors import KeysError, SettingsError
from pki.frozen import replace

_HUP = getattr(signal, "SIGHUP", None)

LOG_SECONDS = 0.02
"""How late a line may be: an outcome is on its way by then, also where thirty are, and its manager has ended. A server
that is killed loses the lines of so short a time."""


def load_trust(settings: ServerSettings) -> Trust:
    """Open the stores and make the TLS context. Blocks. Raises KeysError."""
    material = load_material(settings.keys)
    return Trust(server_context(material), material)


def grants_of(settings: ServerSettings, trust: Trust, distrusted: Iterable[str] = ()) -> Grants:
    """Find out whose the sections of certificates are; `distrusted` are fingerprints of sessions that only stay."""
    aliases = {fingerprint(pin.der): pin.alias for pin in trust.material.pins}
    return Grants(settings.policy.grants, aliases, distrusted)


def odd_sections(settings: ServerSettings, grants: Grants) -> list[str]:
    """Say which sections are nobody's, a typing error or a certificate that is trusted no more, and which are not
    heeded.
    """
    where, store = settings.config_path, settings.keys.trust_store
    lines = [
        f"{where}: the section {name!r} names no certificate in {store}: "
        "'cmapppki list' shows their aliases and fingerprints"
        for name in grants.unknown
    ]
    return lines + [
        f"{where}: the section {name!r} is not heeded: its certificate has one by its fingerprint"
        for name in grants.doubled
    ]


async def run_daemon(
    settings: ServerSettings, reread: Callable[[], ServerSettings], trust: Trust, report: Report
) -> None:
    """Serve until TERM or INT.

    `reread` gives the settings anew, upon HUP. Raises StateDirError, RecordError or ListenError where it cannot start.
    """
    handled = [signal.SIGTERM, signal.SIGINT] + ([_HUP] if _HUP is not None else [])
    with written_late(report, LOG_SECONDS), locked_state_dir(settings.state_dir), contextlib.ExitStack() as opened:
        make_log_dir(settings.log_dir)
        records = Records(settings.state_dir)
        records.prepare()
        environment = application_environment(os.environ)
        processes = open_processes(records, environment, report)
        raise_limit(settings, report)
        grants = grants_of(settings, trust)
        for line in odd_sections(settings, grants):
            report.warning(line)
        supervisor = Supervisor(settings, records, processes, environment, report, grants)
        listener = Listener(supervisor, report, trust, settings.max_processes)
        await wait_for_former(settings.state_dir, report)
        supervisor.recover()
        sockets = open_listening_sockets(settings.listen, settings.port)
        for sock in sockets:
            opened.callback(sock.socket.close)
        signals = opened.enter_context(trio.open_signal_receiver(*handled))
        async with trio.open_nursery() as everything:
            await everything.start(supervisor.serve)
            daemon = _Daemon(settings, reread, report, supervisor, listener)
            async with trio.open_nursery() as sessions:
                accepting = trio.CancelScope()
                sessions.start_soon(daemon.accept, sockets, sessions, accepting)
                _settle_memory()
                daemon.say_ready(sockets)
                await daemon.heed(signals, accepting, sessions.cancel_scope)
            everything.cancel_scope.cancel()
        report.info("ended; applications go on")


def _settle_memory() -> None:
    """Take what the start has made out of the garbage collector's sight: a full collection is cheap from now on."""
    gc.collect()
    gc.freeze()


@final
class _Daemon:
    def __init__(
        self,
        settings: ServerSettings,
        reread: Callable[[], ServerSettings],
        report: Report,
        supervisor: Supervisor,
        listener: Listener,
    ) -> None:
        self._settings = settings
        self._reread = reread
        self._report = report
        self._supervisor = supervisor
        self._listener = listener
        self._one_reload = trio.Lock()
        self._status = "starting"

    async def accept(
        self, sockets: list[trio.SocketListener], sessions: trio.Nursery, accepting: trio.CancelScope
    ) -> None:
        with accepting:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._listener.watch_dates)
                nursery.start_soon(serve_watchdog, self._listener, sockets)
                for sock in sockets:
                    nursery.start_soon(self._listener.accept, sock, sessions)

    def say_ready(self, sockets: list[trio.SocketListener]) -> None:
        found = self._supervisor.count_active()
        what = "1 application" if found == 1 else f"{found} applications"
        self._report.info(f"cmappserver {VERSION} started, {what} found again")
        for sock in sockets:
            name = sock.socket.getsockname()
            self._report.info(f"listening on {address_of(name)} port {name[1]}")
        self._status = f"listening on port {sockets[0].socket.getsockname()[1]}"
        notify("READY=1", f"STATUS={self._status}")

    async def heed(self, signals: AsyncIterator[int], accepting: trio.CancelScope, sessions: trio.CancelScope) -> None:
        """Act on signals until the sessions have been let go, or a second TERM cuts that short."""
        async with trio.open_nursery() as nursery:
            async for number in signals:
                if number == _HUP:
                    nursery.start_soon(self._reload)  # beside the signals: a TERM must not wait for slow keys
                elif accepting.cancel_called:
                    nursery.cancel_scope.cancel()
                    break
                else:
                    name = signal.Signals(number).name
                    self._report.info(f"{name}: letting the managers go, the applications go on")
                    notify("STOPPING=1")
                    accepting.cancel()
                    nursery.start_soon(partial(self._drain, nursery.cancel_scope))
        sessions.cancel()

    async def _drain(self, heeding: trio.CancelScope) -> None:
        await self._listener.drain("the server ends, for a restart or for good")
        heeding.cancel()

    async def _reload(self) -> None:
        async with self._one_reload:
            notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
            try:
                settings, trust = await trio.to_thread.run_sync(self._load, abandon_on_cancel=True)
            except Exception as error:  # noqa: BLE001  (for want of a thread, say: whatever is wrong, this server goes on)
                is_expected = isinstance(error, SettingsError | KeysError | StateDirError)
                reason = str(error) if is_expected else f"{type(error).__name__}: {error}"
                text = f"reload failed, the old configuration and keys stay in force: {reason}"
                self._report.error(text)
                status = text.replace("\n", " ")  # it would end the assignment
            else:
                self._take_over(settings, trust)
                status = self._status
            notify("READY=1", f"STATUS={status}")

    def _load(self) -> tuple[ServerSettings, Trust]:
        settings = self._reread()
        trust = load_trust(settings)
        make_log_dir(settings.log_dir)
        return settings, trust

    def _take_over(self, settings: ServerSettings, trust: Trust) -> None:
        old = self._settings
        fixed = [name for name in ("listen", "port", "state_dir") if getattr(settings, name) != getattr(old, name)]
        if fixed:
            self._report.warning(f"{', '.join(fixed)} changed in the configuration: that needs a restart of the server")
            settings = replace(settings, listen=old.listen, port=old.port, state_dir=old.state_dir)
        self._settings = settings
        raise_limit(settings, self._report)
        distrusted = self._listener.reload(trust, settings.max_processes)
        grants = grants_of(settings, trust, distrusted)
        for line in odd_sections(settings, grants):
            self._report.warning(line)
        self._supervisor.reconfigure(settings, grants)
        self._report.info("configuration and keys read again and in force")

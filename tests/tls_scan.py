"""Scan a listening port with sslyze against Mozilla's *modern* profile: one JSON object of issues on standard output.

Runs in an environment of its own (`make test-keys` makes it), with sslyze and without anything of ours:

    python tls_scan.py PORT CLIENT_CERTIFICATE CLIENT_KEY
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from sslyze import (  # type: ignore[import-not-found]  # in the other environment only
    ClientAuthenticationCredentials,
    Scanner,
    ServerNetworkConfiguration,
    ServerNetworkLocation,
    ServerScanRequest,
)
from sslyze.mozilla_tls_profile.tls_config_checker import (  # type: ignore[import-not-found]
    SCAN_COMMANDS_NEEDED_BY_MOZILLA_CHECKER,
    MozillaTlsConfiguration,
    ServerNotCompliantWithTlsConfiguration,
    TlsConfigurationEnum,
    check_server_against_tls_configuration,
)


def main(port: str, certificate: str, key: str) -> None:
    credentials = ClientAuthenticationCredentials(certificate_chain_path=Path(certificate), key_path=Path(key))
    request = ServerScanRequest(
        server_location=ServerNetworkLocation(hostname="localhost", ip_address="127.0.0.1", port=int(port)),
        network_configuration=ServerNetworkConfiguration(
            tls_server_name_indication="localhost", tls_client_auth_credentials=credentials
        ),
        scan_commands=SCAN_COMMANDS_NEEDED_BY_MOZILLA_CHECKER,
    )
    scanner = Scanner()
    scanner.queue_scans([request])
    (result,) = scanner.get_results()
    issues: dict[str, str] = {}
    try:
        check_server_against_tls_configuration(result, MozillaTlsConfiguration.get(TlsConfigurationEnum.MOZILLA_MODERN))
    except ServerNotCompliantWithTlsConfiguration as error:
        issues = error.issues
    curves = [curve.name for curve in result.scan_result.elliptic_curves.result.supported_curves]
    suites = result.scan_result.tls_1_3_cipher_suites.result.accepted_cipher_suites
    print(json.dumps({"issues": issues, "curves": curves, "suites": [each.cipher_suite.name for each in suites]}))


if __name__ == "__main__":
    main(*sys.argv[1:])

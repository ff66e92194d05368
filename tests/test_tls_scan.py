"""What sslyze finds on the listening port, measured against Mozilla's *modern* profile: `make test-keys`.

sslyze has an environment of its own, since it wants other versions of our dependencies; without it the test is skipped.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, pkcs12
from pair import Guest

pytestmark = pytest.mark.keys

ROOT = Path(__file__).resolve().parent.parent
SCANNER = ROOT / ".venv-scan" / "bin" / "python"

EXPECTED = {
    "certificate_path_validation": "a pin is signed by nobody else: the trust store says who it is",
    "maximum_certificate_lifespan": "the old guide's 400 days; a pin is taken out of a trust store, not waited out",
}
"""What a pinned certificate cannot satisfy, and why that is right."""

SCAN_SECONDS = 300


def pem_of(store: Path, directory: Path) -> tuple[str, str]:
    """Give paths of the certificate and the key in a key store, as PEM."""
    found = pkcs12.load_pkcs12(store.read_bytes(), b"clientpw")
    assert found.cert is not None
    assert found.key is not None
    certificate, key = directory / "certificate.pem", directory / "key.pem"
    certificate.write_bytes(found.cert.certificate.public_bytes(Encoding.PEM))
    key.write_bytes(found.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return str(certificate), str(key)


def test_listening_port_passes_mozillas_modern_profile_but_for_what_pins_are(guest: Guest, tmp_path: Path) -> None:
    if not SCANNER.exists():
        pytest.skip("sslyze is not installed: make test-keys installs it")
    certificate, key = pem_of(guest.directory / "client.private", tmp_path)
    done = subprocess.run(
        [SCANNER, ROOT / "tests" / "tls_scan.py", str(guest.port), certificate, key],
        capture_output=True,
        check=False,
        timeout=SCAN_SECONDS,
    )
    assert done.returncode == 0, done.stderr.decode()
    found = json.loads(done.stdout)
    assert set(found["issues"]) <= set(EXPECTED), found["issues"]
    assert found["curves"], "no key exchange was found: the scan did not get as far"
    assert found["suites"], "no cipher suite was found: the scan did not get as far"
    assert guest.run("-service", "/bin/true")[0] == 0  # the scan has not hurt it

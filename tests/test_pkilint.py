"""What pkilint, a linter of certificates by RFC 5280, says of those that we make: `make test-keys`.

It has an environment of its own, since it wants other versions of our dependencies; without it the tests are skipped.
"""

from __future__ import annotations

import json
import subprocess
from datetime import datetime, timezone
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from pki.certificates import Purpose, issue

pytestmark = pytest.mark.keys

LINTER = Path(__file__).resolve().parent.parent / ".venv-lint" / "bin" / "lint_pkix_cert"

EXPECTED = {
    "pkix.invalid_domain_name_syntax": "hosts and guests of a cluster are called by names of one label, or with an "
    "underscore; the linter knows names of the public DNS only, and the SAN has to be the name that is used",
}
"""What a certificate of ours cannot satisfy, and why that is right. Names of the public DNS get no leave at all."""

LINT_SECONDS = 120


def findings(path: Path) -> set[str]:
    if not LINTER.exists():
        pytest.skip("pkilint is not installed: make test-keys installs it")
    words = [str(LINTER), "lint", "--severity", "WARNING", "--format", "JSON", str(path)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=LINT_SECONDS)
    report = json.loads(done.stdout)
    return {found["code"] for result in report["results"] for found in result["finding_descriptions"]}


@pytest.mark.parametrize("purpose", Purpose)
@pytest.mark.parametrize(
    ("name", "dname", "expected"),
    [
        ("node1.example.org", None, set()),
        ("node1.example.org", "CN=node1, O=Example, C=JP", set()),
        ("10.0.0.1", None, set()),
        ("fe80::1", None, set()),
        ("a" * 63 + ".example.org", None, set()),
        ("node1", None, set(EXPECTED)),
        ("vm_1", None, set(EXPECTED)),
    ],
)
def test_what_is_issued_passes_but_for_names_outside_the_dns(
    tmp_path: Path, purpose: Purpose, name: str, dname: str | None, expected: set[str]
) -> None:
    made = issue(purpose, name, dname=dname, now=datetime.now(timezone.utc))
    renewed = issue(purpose, name, now=datetime.now(timezone.utc), like=made.certificate)
    for certificate in (made.certificate, renewed.certificate):
        path = tmp_path / "certificate.pem"
        path.write_bytes(certificate.public_bytes(Encoding.PEM))
        assert findings(path) == expected


def test_the_linter_would_say_so(tmp_path: Path) -> None:
    # A certificate of old habits, from the linter's point of view: proof that it looks.
    path = tmp_path / "certificate.pem"
    key = tmp_path / "key.pem"
    words = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", str(key), "-out", str(path)]
    words += ["-subj", "/CN=x", "-addext", "subjectAltName=critical,DNS:node1.example.org"]
    try:
        subprocess.run(words, capture_output=True, check=True, timeout=LINT_SECONDS)
    except FileNotFoundError:
        pytest.skip("openssl is not installed")
    assert findings(path)

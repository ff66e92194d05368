"""TLS policy, by real handshakes between two ends joined in memory: who gets in, who does not, and what each side
is told."""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta, timezone

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID

from pki import contexts, refusals
from pki.certificates import Issued, Purpose, issue, parse_dname
from pki.contexts import X509_V_FLAG_NO_CHECK_TIME, Peer, client_context, heed_dates, judge_peer, server_context
from pki.errors import KeysError, PeerRefused
from pki.material import EXPIRED_PINS, ExpiredPins, Material, Pin

NOW = datetime.now(timezone.utc)
DAY = timedelta(days=1)


def der(made: Issued) -> bytes:
    return made.certificate.public_bytes(Encoding.DER)


def key_pem(made: Issued) -> bytes:
    return made.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def material(own: Issued, *trusted: Issued, expired_pins: ExpiredPins = "accept") -> Material:
    pins = tuple(Pin(der(made), f"pin{number}") for number, made in enumerate(trusted))
    return Material(own.certificate.public_bytes(Encoding.PEM), key_pem(own), pins, expired_pins)


def guest(name: str = "g1", *, now: datetime = NOW, days: int = 400) -> Issued:
    return issue(Purpose.SERVER, name, validity_days=days, now=now)


def host(*, now: datetime = NOW, days: int = 400) -> Issued:
    return issue(Purpose.CLIENT, "host1", validity_days=days, now=now)


GUEST, HOST, STRANGER = guest(), host(), host()
EXPIRED_GUEST, EXPIRED_HOST = guest(now=NOW - 20 * DAY, days=10), host(now=NOW - 20 * DAY, days=10)


def authority(*, now: datetime = NOW) -> Issued:
    key = ec.generate_private_key(ec.SECP256R1())
    name = parse_dname("CN=authority")
    builder = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
    )
    builder = builder.not_valid_before(now - DAY).not_valid_after(now + 10 * DAY)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    return Issued(key, builder.sign(key, hashes.SHA256()))


def issued_by(parent: Issued, *names: str, begins: datetime = NOW - DAY, days: int = 10, ca: bool = False) -> Issued:
    key = ec.generate_private_key(ec.SECP256R1())
    builder = x509.CertificateBuilder().subject_name(parse_dname("CN=leaf")).issuer_name(parent.certificate.subject)
    builder = builder.public_key(key.public_key()).serial_number(2).not_valid_before(begins)
    builder = builder.not_valid_after(begins + days * DAY)
    builder = builder.add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    if names:
        alternative = x509.SubjectAlternativeName([x509.DNSName(name) for name in names])
        builder = builder.add_extension(alternative, critical=False)
    return Issued(key, builder.sign(parent.key, hashes.SHA256()))


class End:
    """One end of a handshake in memory."""

    def __init__(self, context: ssl.SSLContext, *, server_side: bool) -> None:
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_side=server_side)
        self.error: ssl.SSLError | None = None
        self.done = False

    def step(self, action: Callable[[], object]) -> None:
        if self.error is None:
            try:
                action()
                self.done = True
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLError as error:
                self.error = error


def shake(server: ssl.SSLContext, client: ssl.SSLContext) -> tuple[End, End]:
    """Shake hands to the end, both ends told everything that the other has to say: gives server and client."""
    ends = End(server, server_side=True), End(client, server_side=False)
    for _ in range(4):
        for end, other in (ends[::-1], ends):
            if not end.done:
                end.step(end.tls.do_handshake)
            other.incoming.write(end.outgoing.read())
    # TLS 1.3 tells a refused client at its first read.
    ends[1].done = False
    ends[1].step(lambda: ends[1].tls.read(1))
    return ends


def accepted(server: ssl.SSLContext, client: ssl.SSLContext) -> tuple[End, End]:
    ends = shake(server, client)
    assert [end.error for end in ends] == [None, None]
    assert ends[0].done
    return ends


def judge(mine: Material, end: End, name: str | None = None, *, now: datetime = NOW) -> Peer:
    binary, certificate = end.tls.getpeercert(binary_form=True), end.tls.getpeercert()
    assert binary is not None
    assert certificate is not None
    return judge_peer(mine, binary, certificate, name=name, now_unix=now.timestamp())


def test_two_ends_that_pin_each_other_meet_over_tls_13_without_tickets() -> None:
    server, client = material(GUEST, HOST), material(HOST, GUEST)
    ends = accepted(server_context(server), client_context(client))
    assert ends[1].tls.version() == "TLSv1.3"
    assert judge(client, ends[1], "g1").alias == "pin0"
    peer = judge(server, ends[0])
    assert (peer.subject, peer.alias, peer.warning) == ("CN=host1", "pin0", None)
    assert not ends[1].tls.session.has_ticket  # type: ignore[union-attr]  # there is a session after a handshake


def test_a_connection_that_is_not_looked_at_any_more_goes_on_and_costs_no_calls(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looks: list[object] = []
    monkeypatch.setattr(refusals, "_on_message", lambda *seen: looks.append(seen))
    server, client = accepted(server_context(material(GUEST, HOST)), client_context(material(HOST, GUEST)))
    assert looks
    refusals.look_away(server.tls)
    client.tls.write(b"before and")
    client.tls.write(b" after")
    looks.clear()
    server.incoming.write(client.outgoing.read())
    assert server.tls.read(100) + server.tls.read(100) == b"before and after"
    server.tls.write(b"an answer")
    assert not looks
    client.incoming.write(server.outgoing.read())
    assert client.tls.read(100) == b"an answer"
    assert server.tls.getpeercert(binary_form=True) == der(HOST)
    assert server.tls.getpeercert()
    assert refusals.presented(server.tls) is None


def test_a_context_that_looks_at_nothing_more_costs_no_calls_until_the_next_handshake(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looks: list[object] = []
    monkeypatch.setattr(refusals, "_on_message", lambda *seen: looks.append(seen))
    server_side, client_side = server_context(material(GUEST, HOST)), client_context(material(HOST, GUEST))
    server, client = accepted(server_side, client_side)
    refusals.stop_remembering(server_side)
    refusals.stop_remembering(client_side)
    looks.clear()
    client.tls.write(b"words")
    server.incoming.write(client.outgoing.read())
    assert server.tls.read(100) == b"words"
    assert not looks
    refusals.remember_certificates(client_side)
    accepted(server_side, client_side)
    assert looks


def test_the_name_of_a_pinned_guest_does_not_matter() -> None:
    client = material(HOST, GUEST)
    ends = accepted(server_context(material(GUEST, HOST)), client_context(client))
    assert judge(client, ends[1], "another-name").alias == "pin0"


def test_a_foreign_key_is_refused_by_the_server_and_the_client_is_told() -> None:
    server, client = shake(server_context(material(GUEST, HOST)), client_context(material(STRANGER, GUEST)))
    assert server.error is not None
    assert "CERTIFICATE_VERIFY_FAILED" in str(server.error)
    assert client.error is not None
    assert "ALERT" in str(client.error)


def test_a_foreign_guest_is_refused_by_the_client() -> None:
    _, client = shake(server_context(material(guest("g2"), HOST)), client_context(material(HOST, GUEST)))
    assert client.error is not None
    assert "CERTIFICATE_VERIFY_FAILED" in str(client.error)


def test_a_client_without_a_certificate_is_refused() -> None:
    bare = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    bare.check_hostname = False
    bare.verify_mode = ssl.CERT_NONE
    server, client = shake(server_context(material(GUEST, HOST)), bare)
    assert server.error is not None
    assert "PEER_DID_NOT_RETURN_A_CERTIFICATE" in str(server.error)
    assert client.error is not None


@pytest.mark.parametrize("old_side", ["server", "client"])
def test_tls_12_is_refused_on_both_sides(old_side: str) -> None:
    server, client = server_context(material(GUEST, HOST)), client_context(material(HOST, GUEST))
    old = server if old_side == "server" else client
    old.minimum_version = ssl.TLSVersion.TLSv1_2
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    ends = shake(server, client)
    assert all(end.error is not None for end in ends)


def test_old_and_new_keys_of_one_subject_are_trusted_side_by_side() -> None:
    old, new = guest(), guest()
    for trusted in ((old, new), (new, old)):
        for current in trusted:
            client = material(HOST, *trusted)
            ends = accepted(server_context(material(current, HOST)), client_context(client))
            assert judge(client, ends[1], "g1").alias == f"pin{trusted.index(current)}"


def test_a_certificate_that_a_pinned_leaf_signed_is_refused() -> None:
    forged = issued_by(HOST, "host1")
    chain = forged.certificate.public_bytes(Encoding.PEM) + HOST.certificate.public_bytes(Encoding.PEM)
    client = replace(material(forged, GUEST), chain_pem=chain)
    server, _ = shake(server_context(material(GUEST, HOST)), client_context(client))
    assert server.error is not None
    assert "CERTIFICATE_VERIFY_FAILED" in str(server.error)


def test_a_clients_key_cannot_serve_as_a_guest() -> None:
    _, client = shake(server_context(material(HOST, HOST)), client_context(material(HOST, HOST)))
    assert client.error is not None
    assert "purpose" in str(client.error)


def test_expired_pins_are_accepted_with_a_warning_on_both_sides() -> None:
    server, client = material(EXPIRED_GUEST, EXPIRED_HOST), material(EXPIRED_HOST, EXPIRED_GUEST)
    ends = accepted(server_context(server), client_context(client))
    for peer in (judge(server, ends[0]), judge(client, ends[1], "g1")):
        assert peer.warning is not None
        assert "expired on" in peer.warning
        assert "(10 days ago): make new keys" in peer.warning


def test_expired_pins_are_refused_in_the_handshake_where_that_is_set() -> None:
    server, client = material(GUEST, EXPIRED_HOST, expired_pins="refuse"), material(EXPIRED_HOST, GUEST)
    ends = shake(server_context(server), client_context(client))
    assert ends[0].error is not None
    assert "certificate has expired" in str(ends[0].error)
    assert ends[1].error is not None
    assert "CERTIFICATE_EXPIRED" in str(ends[1].error)


def test_a_pin_that_expires_between_handshake_and_judgement_follows_the_policy() -> None:
    server = material(GUEST, HOST, expired_pins="refuse")
    ends = accepted(server_context(server), client_context(material(HOST, GUEST)))
    with pytest.raises(PeerRefused, match=r"CN=host1 \(SHA-256 .*\) expired on .*, and expiredPins=refuse is set"):
        judge(server, ends[0], now=NOW + 500 * DAY)
    assert judge(replace(server, expired_pins="accept"), ends[0], now=NOW + 500 * DAY).warning


def test_a_pin_that_is_not_valid_yet_is_accepted_with_a_warning_about_the_clock() -> None:
    early = host(now=NOW + 30 * DAY)
    server = material(GUEST, early)
    ends = accepted(server_context(server), client_context(material(early, GUEST)))
    warning = judge(server, ends[0]).warning
    assert warning is not None
    assert "is the clock right?" in warning


def test_what_an_authority_in_the_store_issued_must_carry_the_nodes_name() -> None:
    root = authority()
    client = material(HOST, root)
    ends = accepted(server_context(material(issued_by(root, "G1.example"), HOST)), client_context(client))
    assert judge(client, ends[1], "g1.example.").alias is None
    with pytest.raises(PeerRefused, match=r"not for 'g2\.example': it carries g1\.example as SAN"):
        judge(client, ends[1], "g2.example")


def test_a_manager_under_an_authority_may_have_any_name_but_must_have_one() -> None:
    root = authority()
    server = material(GUEST, root)
    ends = accepted(server_context(server), client_context(material(issued_by(root, "host9"), GUEST)))
    assert judge(server, ends[0]).subject == "CN=leaf"
    ends = accepted(server_context(server), client_context(material(issued_by(root), GUEST)))
    with pytest.raises(PeerRefused, match="carries no name as SAN"):
        judge(server, ends[0])


@pytest.mark.parametrize("begins", [NOW - 20 * DAY, NOW + 5 * DAY])
@pytest.mark.parametrize("policy", EXPIRED_PINS)
def test_what_an_authority_issued_must_be_in_date_and_the_alert_says_so(begins: datetime, policy: ExpiredPins) -> None:
    root = authority()
    leaf = issued_by(root, "host1", begins=begins)
    ends = shake(server_context(material(GUEST, root, expired_pins=policy)), client_context(material(leaf, GUEST)))
    assert isinstance(ends[0].error, ssl.SSLCertVerificationError)
    assert ends[1].error is not None
    assert "ALERT" in str(ends[1].error)


@pytest.mark.parametrize("begins", [NOW - 20 * DAY, NOW + 5 * DAY])
def test_what_an_authority_issued_must_be_in_date_also_beside_an_expired_pin(begins: datetime) -> None:
    root = authority()
    leaf = issued_by(root, "host1", begins=begins)
    server = material(GUEST, root, EXPIRED_HOST)
    ends = accepted(server_context(server), client_context(material(leaf, GUEST)))
    with pytest.raises(PeerRefused, match=r"(expired on|is not valid before) .* so it must be in date"):
        judge(server, ends[0])


def test_dates_are_left_to_the_judgement_only_while_a_pin_is_out_of_date() -> None:
    server, client = material(GUEST, HOST), material(HOST, GUEST)
    context = server_context(server)
    strict = context.verify_flags
    for at, relaxed in ((NOW + 500 * DAY, True), (NOW, False), (NOW - 5 * DAY, True)):
        heed_dates(context, server, at.timestamp())
        assert bool(context.verify_flags & X509_V_FLAG_NO_CHECK_TIME) is relaxed
        accepted(context, client_context(client))
    heed_dates(context, server, NOW.timestamp())
    assert context.verify_flags == strict
    heed_dates(context, replace(server, expired_pins="refuse"), (NOW + 500 * DAY).timestamp())
    assert context.verify_flags == strict


def any_key(kind: str, usage: x509.ObjectIdentifier | x509.KeyUsage | None = None) -> Material:
    """What another tool makes: a self-signed certificate over a key of this kind, with or without a purpose."""
    made: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey
    match kind:
        case "RSA 2048":
            made = rsa.generate_private_key(65537, 2048)
        case "Ed25519":
            made = ed25519.Ed25519PrivateKey.generate()
        case _:
            made = ec.generate_private_key(ec.SECP384R1() if kind == "P-384" else ec.SECP256R1())
    name = parse_dname(f"CN={kind}")
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(made.public_key())
    builder = builder.serial_number(7).not_valid_before(NOW - DAY).not_valid_after(NOW + 100 * DAY)
    if isinstance(usage, x509.KeyUsage):
        builder = builder.add_extension(usage, critical=True)
    elif usage is not None:
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
    signed = builder.sign(made, None if isinstance(made, ed25519.Ed25519PrivateKey) else hashes.SHA256())
    own = made.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return Material(signed.public_bytes(Encoding.PEM), own, (Pin(signed.public_bytes(Encoding.DER), kind),))


@pytest.mark.parametrize("kind", ["RSA 2048", "P-256", "P-384", "Ed25519"])
def test_keys_of_every_usual_kind_work_on_both_sides(kind: str) -> None:
    one, two = any_key(kind), any_key(kind)
    server, client = replace(one, pins=two.pins), replace(two, pins=one.pins)
    ends = accepted(server_context(server), client_context(client))
    assert judge(server, ends[0]).alias == judge(client, ends[1], "g1").alias == kind


@pytest.mark.parametrize(
    ("usage", "welcome"),
    [
        (ExtendedKeyUsageOID.CLIENT_AUTH, True),
        (ExtendedKeyUsageOID.SERVER_AUTH, False),
        (ExtendedKeyUsageOID.CODE_SIGNING, False),
    ],
    ids=["client", "server", "code signing"],
)
def test_what_a_certificate_from_elsewhere_may_be_used_for_is_honoured(
    usage: x509.ObjectIdentifier, *, welcome: bool
) -> None:
    one, two = any_key("P-256"), any_key("P-256", usage)
    ends = shake(server_context(replace(one, pins=two.pins)), client_context(replace(two, pins=one.pins)))
    assert (ends[0].error is None) is welcome


def key_usage(*, signs: bool) -> x509.KeyUsage:
    """May sign handshakes, or may sign nothing but lists of what was revoked."""
    others = ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "key_cert_sign")
    off = dict.fromkeys((*others, "encipher_only", "decipher_only"), False)
    return x509.KeyUsage(digital_signature=signs, crl_sign=not signs, **off)


@pytest.mark.parametrize("signs", [True, False])
def test_key_usage_of_a_certificate_from_elsewhere_is_honoured_on_both_sides(*, signs: bool) -> None:
    plain, limited = any_key("P-256"), any_key("P-256", key_usage(signs=signs))
    for server, client in ((plain, limited), (limited, plain)):
        ends = shake(
            server_context(replace(server, pins=client.pins)), client_context(replace(client, pins=server.pins))
        )
        assert all(end.error is None for end in ends) is signs


def test_a_certificate_without_its_key_cannot_be_shown() -> None:
    stolen = replace(material(HOST, GUEST), key_pem=key_pem(STRANGER))
    with pytest.raises(KeysError, match="the key store 'key store' cannot be used: its private key does not match"):
        client_context(stolen)


def test_an_rsa_key_too_small_for_openssl_is_explained() -> None:
    key = rsa.generate_private_key(65537, 1024)
    builder = x509.CertificateBuilder().subject_name(parse_dname("CN=x")).issuer_name(parse_dname("CN=x"))
    builder = builder.not_valid_before(NOW).not_valid_after(NOW + DAY).serial_number(1).public_key(key.public_key())
    chain = builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    with pytest.raises(KeysError, match="its key is too small: make new keys"):
        server_context(replace(material(GUEST, HOST), chain_pem=chain, key_pem=pem))


def test_an_encrypted_key_is_refused_and_nobody_is_asked_for_a_password() -> None:
    encrypted = GUEST.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"x"))
    with pytest.raises(KeysError, match="the private key is still encrypted"):
        server_context(replace(material(GUEST, HOST), key_pem=encrypted))


def test_a_trust_store_that_is_no_certificate_is_refused() -> None:
    for pins in ((Pin(b"no der", "x"),), ()):
        with pytest.raises(KeysError, match="the trust store 'trust store' cannot be used"):
            server_context(replace(material(GUEST), pins=pins))


def test_no_file_is_left_where_there_is_no_memory_file(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr("sys.platform", "elsewhere")
    seen: list[int] = []

    with contexts._path_of(b"secret") as path:
        seen.append(os.stat(path).st_mode & 0o777)
    server_context(material(GUEST, HOST))
    assert seen == [0o600]
    assert os.listdir(str(tmp_path)) == []


def test_no_descriptor_is_left_after_a_context_is_made() -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    server_context(material(GUEST, HOST))
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_a_subject_cannot_smuggle_control_characters_into_the_log() -> None:
    made = issue(Purpose.CLIENT, "host1", dname="CN=a\nb, O=x", now=NOW)
    server = material(GUEST, made)
    ends = accepted(server_context(server), client_context(material(made, GUEST)))
    assert judge(server, ends[0]).subject == "CN=a?b, O=x"


def test_secrets_do_not_show_in_the_repr_of_material() -> None:
    assert "PRIVATE" not in repr(material(GUEST, HOST))

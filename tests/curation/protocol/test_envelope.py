"""Laws of signatures, encryption and key files: what is changed, cut or another's is refused."""

import base64
import dataclasses
import hashlib
import json
import os
import stat

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from fedwinnow.curation.errors import ConfigError, OutputError, ProtocolError
from fedwinnow.curation.protocol.envelope import (
    Envelope,
    Stamp,
    decrypt,
    encrypt,
    sign,
    verify,
    verify_stamp,
)
from fedwinnow.curation.protocol.keys import PrivateKey, PublicKey

KEY, OTHER = PrivateKey.new(), PrivateKey.new()
WORDS = {"site": "north", "run": "r1", "phase": "join", "sequence": 7}
PAYLOAD = b"what is asked of a site"
MADE = sign(KEY, PAYLOAD, **WORDS)
ENCRYPTED = encrypt(PAYLOAD, KEY.public)
TREE = json.loads(MADE.stamp)
BYTES = st.binary(max_size=2000)
PRIVATE, PUBLIC = "fedwinnow-private-1:", "fedwinnow-key-1:"


def with_bit(data: bytes, place: int) -> bytes:
    """The same bytes with one bit changed; ``place`` counts round and round."""
    place %= 8 * len(data)
    changed = bytearray(data)
    changed[place // 8] ^= 1 << place % 8
    return bytes(changed)


def signed(text: bytes) -> bytes:
    """A true signature over anything: what a coordinator of another version would send."""
    return Ed25519PrivateKey.from_private_bytes(KEY.signing).sign(text)


def line(key: PrivateKey) -> str:
    """What a key file holds."""
    return PRIVATE + base64.urlsafe_b64encode(key.signing + key.opening).decode()


@given(payload=BYTES, site=st.text(max_size=20), number=st.integers(0, 2**80))
def test_envelope_whole_is_its_stamp(payload, site, number):
    """What was signed is what is read: any payload, any name, any number; digest and size hold."""
    made = sign(KEY, payload, **(WORDS | {"site": site, "sequence": number, "ledger": "head"}))
    assert verify(made, KEY.public) == Stamp(
        sender=KEY.public.fingerprint,
        site=site,
        run="r1",
        phase="join",
        sequence=number,
        digest=hashlib.sha256(payload).hexdigest(),
        size=len(payload),
        ledger="head",
    )


@given(part=st.sampled_from(["stamp", "signature", "payload"]), place=st.integers(0, 10**6))
def test_envelope_with_any_bit_changed_is_refused(part, place):
    """One bit of stamp, signature or payload, wherever it stands."""
    changed = with_bit(getattr(MADE, part), place)
    with pytest.raises(ProtocolError):
        verify(dataclasses.replace(MADE, **{part: changed}), KEY.public)


@given(
    part=st.sampled_from(["stamp", "signature", "payload"]), size=st.integers(0, 10**6), more=BYTES
)
def test_envelope_cut_or_longer_is_refused(part, size, more):
    """Fewer bytes at the end, none at all, or more than were signed."""
    whole = getattr(MADE, part)
    for changed in (whole[: size % len(whole)], whole + b"\0" + more):
        with pytest.raises(ProtocolError):
            verify(dataclasses.replace(MADE, **{part: changed}), KEY.public)


@given(stamp=BYTES, signature=BYTES, payload=BYTES)
def test_envelope_of_any_bytes_is_refused(stamp, signature, payload):
    """Whatever comes, the refusal is a ProtocolError: nothing else is raised."""
    with pytest.raises(ProtocolError):
        verify(Envelope(stamp=stamp, signature=signature, payload=payload), KEY.public)


def test_envelope_of_another_key_is_refused():
    """Another's signature is refused, and so is a key that shares one half with the pinned one."""
    halves = (
        OTHER.public,
        PublicKey(OTHER.public.verifying, KEY.public.encrypting),
        PublicKey(KEY.public.verifying, OTHER.public.encrypting),
        PublicKey(b"\0" * 32, KEY.public.encrypting),
    )
    for key in halves:
        with pytest.raises(ProtocolError):
            verify(MADE, key)


def test_envelope_parts_of_two_do_not_make_a_third():
    """Stamp, signature and payload belong together: no mixture of two true ones is read."""
    second = sign(KEY, b"something else", **(WORDS | {"sequence": 8}))
    for parts in ({"payload"}, {"stamp"}, {"signature"}, {"stamp", "payload"}):
        mixed = dataclasses.replace(MADE, **{part: getattr(second, part) for part in parts})
        with pytest.raises(ProtocolError):
            verify(mixed, KEY.public)
    mixed = dataclasses.replace(second, payload=MADE.payload)
    with pytest.raises(ProtocolError, match="send it again"):
        verify(mixed, KEY.public)


ODD_TREES = {
    **{f"without {name}": {k: v for k, v in TREE.items() if k != name}
       for name in TREE if name != "ledger"},
    "with one more": TREE | {"more": ""},
    "with a number as text": TREE | {"sequence": "7"},
    "with a number with a point": TREE | {"sequence": 7.0},
    "with a truth for a number": TREE | {"sequence": True},
    "with a text as number": TREE | {"site": 7},
    "with nothing for a text": TREE | {"run": None},
    "with a list": TREE | {"phase": ["join"]},
    "of another sender": TREE | {"sender": OTHER.public.fingerprint},
    "that is a list": [*TREE.values()],
    "that is a text": "stamp",
    "that is nothing": None,
}  # fmt: skip


@pytest.mark.parametrize("kind", ODD_TREES)
def test_stamp_of_another_form_is_refused(kind):
    """Signed by the right key, but with other types, more fields, fewer, or another sender."""
    text = json.dumps(ODD_TREES[kind]).encode()
    with pytest.raises(ProtocolError):
        verify_stamp(text, signed(text), KEY.public)


@pytest.mark.parametrize("text", [b"", b"{", b"\xff", b"[" * 100_000, b'{"size": ' + b"9" * 9999])
def test_stamp_that_is_no_json_is_refused(text):
    """Signed by the right key, but cut, no text, endlessly nested, or of endless digits."""
    with pytest.raises(ProtocolError, match="not one of this version"):
        verify_stamp(text, signed(text), KEY.public)


@given(payload=BYTES)
def test_seal_is_undone_by_its_reader_alone(payload):
    """The reader's key opens it, another key does not, and no two ciphertexts are equal."""
    first, second = encrypt(payload, KEY.public), encrypt(payload, KEY.public)
    assert decrypt(first, KEY) == payload
    assert first != second
    assert len(payload) < 16 or payload not in first
    for key in (
        OTHER,
        PrivateKey(KEY.signing, OTHER.opening),
        PrivateKey(KEY.opening, KEY.signing),
    ):
        with pytest.raises(ProtocolError, match="cannot be opened"):
            decrypt(first, key)


@given(place=st.integers(0, 10**6))
def test_seal_with_any_bit_changed_is_not_opened(place):
    """A bit of the reader's part, of the text or of its tag."""
    with pytest.raises(ProtocolError):
        decrypt(with_bit(ENCRYPTED, place), KEY)


@given(data=st.one_of(BYTES, st.integers(0, len(ENCRYPTED) - 1).map(lambda end: ENCRYPTED[:end])))
def test_seal_of_any_bytes_is_not_opened(data):
    """What nobody encrypted, or what was cut, is a ProtocolError and nothing else."""
    with pytest.raises(ProtocolError):
        decrypt(data, KEY)


@pytest.mark.parametrize("first", [0, 1, 0xFF])
def test_seal_by_a_weak_share_is_not_opened(first):
    """A sender's share that gives everyone the same secret (RFC 7748, 6.1) opens nothing."""
    with pytest.raises(ProtocolError):
        decrypt(bytes([first]) + b"\0" * 31 + ENCRYPTED[32:], KEY)


def test_key_file_gives_the_key_back_and_is_its_owners_alone(tmp_path):
    """Save, then load: the same key; mode 0600 whatever the umask; nothing else is left there."""
    file = tmp_path / "keys" / "site.key"
    for mask in (0o000, 0o077):
        before = os.umask(mask)
        try:
            KEY.save(file)
        finally:
            os.umask(before)
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert PrivateKey.load(file) == KEY
    assert file.read_text(encoding="ascii") == line(KEY) + "\n"
    assert [entry.name for entry in file.parent.iterdir()] == ["site.key"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o610, 0o601, 0o666, 0o777])
def test_key_file_that_others_may_use_is_refused(tmp_path, mode):
    """Any bit for group or others, and the message says what to run."""
    file = tmp_path / "site.key"
    KEY.save(file)
    file.chmod(mode)
    with pytest.raises(ConfigError, match="chmod 600"):
        PrivateKey.load(file)


GARBAGE = {
    "nothing": b"",
    "no text": b"\xff\xfe\x00",
    "a cut line": line(KEY).encode()[:-8],
    "a longer line": line(KEY).encode() + b"AAAA",
    "two lines": (line(KEY) + "\n" + line(OTHER)).encode(),
    "a public key": KEY.public.text.encode(),
    "no prefix": line(KEY).removeprefix(PRIVATE).encode(),
    "another version": line(KEY).replace("-1:", "-2:").encode(),
    "a foreign sign": line(KEY).replace(PRIVATE, PRIVATE + "!").encode(),
}


@pytest.mark.parametrize("kind", GARBAGE)
def test_key_file_of_garbage_is_refused_without_its_text(tmp_path, kind):
    """What is no key is named by file and length; no character of it is in the message."""
    file = tmp_path / "site.key"
    file.write_bytes(GARBAGE[kind])
    file.chmod(0o600)
    with pytest.raises(ConfigError, match=r"site\.key: expected") as caught:
        PrivateKey.load(file)
    secret = base64.urlsafe_b64encode(KEY.signing + KEY.opening).decode()
    assert not any(secret[at : at + 8] in str(caught.value) for at in range(len(secret) - 8))


def test_key_file_missing_or_a_folder_is_refused(tmp_path):
    """No file, a folder in its place, and a place that cannot be written."""
    with pytest.raises(ConfigError, match="fedwinnow keys"):
        PrivateKey.load(tmp_path / "none.key")
    with pytest.raises(ConfigError):
        PrivateKey.load(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(OutputError):
        KEY.save(tmp_path / "file" / "site.key")


@given(st.binary(min_size=64, max_size=64))
def test_public_line_is_one_to_one(both):
    """Any two halves: the line is read back as the same key, and stays the same line."""
    key = PublicKey(both[:32], both[32:])
    assert PublicKey.parse(key.text) == key
    assert PublicKey.parse(key.text).text == key.text


@pytest.mark.parametrize(
    "text",
    [
        "",
        PUBLIC,
        KEY.public.text[:-4],
        KEY.public.text + "AAAA",
        KEY.public.text.removeprefix(PUBLIC),
        KEY.public.text.replace(PUBLIC, PUBLIC + " "),
        KEY.public.text.replace(PUBLIC, PUBLIC + "é"),
        line(KEY),
    ],
    ids=["empty", "prefix", "cut", "longer", "bare", "space", "accent", "private"],
)
def test_public_line_of_another_form_is_refused(text):
    """A line that is cut, longer, of another kind, or holds a foreign sign names the setting."""
    with pytest.raises(ConfigError, match=r"policy\.coordinator: expected a key"):
        PublicKey.parse(text, "policy.coordinator")


def test_fingerprint_is_of_both_halves():
    """SHA-256 of both keys, 32 digits: changing either half changes it."""
    key = KEY.public
    assert key.fingerprint == hashlib.sha256(key.verifying + key.encrypting).hexdigest()[:32]
    others = (
        PublicKey(with_bit(key.verifying, 0), key.encrypting),
        PublicKey(key.verifying, with_bit(key.encrypting, 255)),
        PublicKey(key.encrypting, key.verifying),
    )
    assert len({key.fingerprint, *(other.fingerprint for other in others)}) == 4


def test_private_key_shows_its_fingerprint_only():
    """No form in which a key is printed holds a part of it, alone or inside other nouns."""
    shown = [repr(KEY), str(KEY), f"{KEY}", repr([KEY]), repr({"key": KEY}), f"{KEY!r:>9}"]
    assert set(shown[:3]) == {f"PrivateKey({KEY.public.fingerprint})"}
    for secret in (KEY.signing, KEY.opening):
        forms = (secret.hex(), repr(secret)[2:-1], base64.urlsafe_b64encode(secret).decode()[:40])
        assert not any(form in text for form in forms for text in shown)


def test_private_keys_are_never_twice_the_same():
    """Fresh keys differ in both halves, and their public halves are not the private ones."""
    keys = [PrivateKey.new() for _ in range(8)]
    halves = {half for key in keys for half in (key.signing, key.opening)}
    halves |= {half for key in keys for half in (key.public.verifying, key.public.encrypting)}
    assert len(halves) == 4 * len(keys)

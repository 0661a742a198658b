"""Keys and signatures; OpenSSL agrees where it is installed."""

import shutil
import stat
import subprocess

import pytest

from pipeline.errors import InputError
from pipeline.export.signing import (
    fingerprint,
    is_signed_by,
    keygen,
    load_private,
    load_public,
)


def test_keys_are_made_once_and_the_private_one_is_the_owners(tmp_path):
    made = keygen(tmp_path / "new")
    assert stat.S_IMODE(made.private.stat().st_mode) == 0o600
    assert fingerprint(load_public(made.public)) == made.fingerprint
    before = made.private.read_bytes()
    with pytest.raises(InputError, match="replenish-private.pem: exists already"):
        keygen(tmp_path / "new")
    made.private.unlink()
    with pytest.raises(InputError, match="replenish-public.pem: exists already"):
        keygen(tmp_path / "new")
    assert not made.private.exists()
    assert keygen(tmp_path / "other").private.read_bytes() != before


def test_signatures(keys):
    private, public = load_private(keys.private), load_public(keys.public)
    signature = private.sign(b"text")
    assert signature == private.sign(b"text")
    assert is_signed_by(public, signature, b"text")
    assert not is_signed_by(public, signature, b"texT")
    assert not is_signed_by(public, signature[:-1], b"text")
    assert not is_signed_by(public, b"", b"text")
    assert not is_signed_by(bytes(32), signature, b"text")


def test_openssl_agrees(keys, tmp_path):
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    (tmp_path / "data").write_bytes(b"text")
    (tmp_path / "sig").write_bytes(load_private(keys.private).sign(b"text"))
    words = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", keys.public, "-rawin"]
    words += ["-in", tmp_path / "data", "-sigfile", tmp_path / "sig"]
    assert subprocess.run(words, capture_output=True, check=False).returncode == 0


def test_other_files_are_no_keys(keys, tmp_path):
    from cryptography.hazmat.primitives import serialization as s
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    other = X25519PrivateKey.generate().private_bytes(
        s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption()
    )
    locked = load_private(keys.private).private_bytes(
        s.Encoding.PEM, s.PrivateFormat.PKCS8, s.BestAvailableEncryption(b"word")
    )
    for name, data in (("text", b"x"), ("other", other), ("locked", locked)):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError, match="not an unencrypted Ed25519 private key"):
            load_private(tmp_path / name)
        with pytest.raises(InputError, match="not an Ed25519 public key"):
            load_public(tmp_path / name)
    with pytest.raises(InputError, match="not an Ed25519 public key"):
        load_public(keys.private)
    (tmp_path / "huge").write_bytes(b"x" * 20_000)
    with pytest.raises(InputError, match="too large for a key"):
        load_public(tmp_path / "huge")
    with pytest.raises(InputError, match="cannot be read"):
        load_private(tmp_path / "absent")

"""Ed25519 keys and detached signatures (RFC 8032): the same key and bytes give the same signature.

Keys are PEM files (PKCS #8 and SubjectPublicKeyInfo) and a signature is its 64 bytes, so that
OpenSSL checks it too. What signs is never written anywhere but into the key file.
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import InputError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )

PRIVATE_KEY = "replenish-private.pem"
PUBLIC_KEY = "replenish-public.pem"
SIGNATURE_SUFFIX = ".sig"
SIGNATURE_BYTES = 64
_LONGEST_KEY_FILE_BYTES = 16_384


@dataclass(frozen=True)
class KeyPaths:
    """Where a new pair of keys lies.

    Attributes:
        private: to be kept secret; signs.
        public: to be given to those who verify.
        fingerprint: sha256 of the public key's 32 bytes, as hex.
    """

    private: Path
    public: Path
    fingerprint: str


def keygen(folder: Path) -> KeyPaths:
    """Make a new pair of keys in `folder`; the private one is readable by its owner alone.

    Raises:
        InputError: one of the two files exists already, or the folder cannot be written to.
    """
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    private, public = folder / PRIVATE_KEY, folder / PUBLIC_KEY
    for path in (private, public):
        if path.exists() or path.is_symlink():
            raise InputError(
                f"{path}: exists already and is not overwritten; name another folder, or move it "
                "away (what it signed can be verified only as long as its public key is kept)"
            )
    key = Ed25519PrivateKey.generate()
    secret = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # The mode comes with the file's creation: at no time can others read it.
        number = os.open(private, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(number, "wb") as file:
            file.write(secret)
        public.write_bytes(public_pem(key.public_key()))
    except OSError as error:
        raise InputError(f"{folder}: keys cannot be written here ({error.strerror})") from None
    return KeyPaths(private, public, fingerprint(raw_public(key.public_key())))


def load_private(path: Path) -> "Ed25519PrivateKey":
    """Return the private key in a PEM file.

    Raises:
        InputError: there is none, or it is not an unencrypted Ed25519 key.
    """
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    data = _read_key(path)
    try:
        key = serialization.load_pem_private_key(data, password=None)
    except Exception:  # what the parser says of a secret file is not repeated
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise InputError(
            f"{path}: not an unencrypted Ed25519 private key in PEM; make one with "
            "`replenish keygen`"
        )
    return key


def load_public(path: Path) -> bytes:
    """Return the 32 bytes of the public key in a PEM file.

    Raises:
        InputError: there is none, or it is not an Ed25519 public key.
    """
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    data = _read_key(path)
    try:
        key = serialization.load_pem_public_key(data)
    except Exception:  # whatever the parser trips over, the file is no public key
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise InputError(
            f"{path}: not an Ed25519 public key in PEM; give the {PUBLIC_KEY} of the maker"
        )
    return raw_public(key)


def is_signed_by(public: bytes, signature: bytes, data: bytes) -> bool:
    """Say whether `signature` is the one of `data` under the 32 bytes of a public key."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, data)
    except (InvalidSignature, ValueError):
        return False
    return True


def raw_public(key: "Ed25519PublicKey") -> bytes:
    """Return the 32 bytes of a public key."""
    return key.public_bytes_raw()


def public_pem(key: "Ed25519PublicKey") -> bytes:
    """Return a public key as PEM."""
    from cryptography.hazmat.primitives import serialization

    return key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def fingerprint(public: bytes) -> str:
    """Return the sha256 of the 32 bytes of a public key, as hex."""
    return hashlib.sha256(public).hexdigest()


def _read_key(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(_LONGEST_KEY_FILE_BYTES + 1)
    except OSError as error:
        raise InputError(f"{path}: the key cannot be read ({error.strerror})") from None
    if len(data) > _LONGEST_KEY_FILE_BYTES:
        raise InputError(f"{path}: too large for a key; give a PEM file of `replenish keygen`")
    return data

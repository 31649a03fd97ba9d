"""The identity of an image: a hash of its file's bytes."""

from __future__ import annotations

import hashlib

from ml_backend.domain.model import ContentKey

KEY_BYTES = 16


def content_key(data: bytes) -> ContentKey:
    """Return the same 32 hex characters for the same bytes, everywhere and for ever (BLAKE2b-128)."""
    return ContentKey(hashlib.blake2b(data, digest_size=KEY_BYTES).hexdigest())


def address_digest(address: str) -> str:
    """A short name of an image's address, which may itself be the whole image (data:…)."""
    return hashlib.blake2b(address.encode(), digest_size=8).hexdigest()

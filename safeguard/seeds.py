"""One way to derive a seed: hash what it is for, so that no two uses share one and order never matters."""

from __future__ import annotations

import hashlib


def derive(seed: int, *purpose: object) -> int:
    """A seed in [0, 2**63) for a purpose such as ``("malicious-lora", 1, "sample", 17)``."""
    text = "\x1f".join([str(seed), *(str(part) for part in purpose)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1

"""One way to derive a seed: hash what it is for, so that no two uses share one and order never matters.

The one thing that is not derived is the nonce of an examination: it is drawn from the system after what is examined is
fixed, so that nobody could know the seeds of his exam.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Sequence

from safeguard.errors import UsageFault

_NONCE = re.compile(r"[0-9a-f]{16,128}")


def derive(seed: int, *purpose: object) -> int:
    """A seed in [0, 2**63) for a purpose such as ``("malicious-lora", 1, "sample", 17)``."""
    text = "\x1f".join([str(seed), *(str(part) for part in purpose)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def draw_nonce() -> str:
    """128 bits from the system, in hexadecimal."""
    return secrets.token_hex(16)


def check_nonce(nonce: str) -> str:
    """A nonce that somebody gave, in small letters.

    Raises:
        UsageFault: it is not 16 to 128 hexadecimal digits.
    """
    if not _NONCE.fullmatch(nonce.lower()):
        raise UsageFault(
            f"{nonce[:40]!r} is no nonce: 16 to 128 hexadecimal digits",
            fix="copy it from the report of the run that is to be repeated; without one, a nonce is drawn",
            where="nonce",
        )
    return nonce.lower()


def examination(seed: int, nonce: str) -> int:
    """The seed from which everything random of an examination follows: the policy's, and the nonce."""
    return derive(seed, "examination", nonce)


def spread(prompts: Sequence[str], count: int, seed: int) -> list[str]:
    """``count`` prompts, each used equally often (to within one), in an order drawn from the seed."""
    import numpy as np

    order = np.random.default_rng(seed).permutation(len(prompts))
    return [prompts[order[i % len(prompts)]] for i in range(count)]

"""One digest over all rows of a certification, from which a single row can be shown to belong to it.

The tree is that of Certificate Transparency (RFC 6962, section 2.1) with SHA-256. A leaf is hashed behind a byte 0, two
nodes behind a byte 1, so that no leaf can be passed off as a node. Of n > 1 leaves the left part has the largest power
of two below n; no leaves have the hash of the empty string.

A leaf is the canonical JSON of a row (sorted keys, no blanks, UTF-8) together with the address of its unit. Units come
in the order of the plan, rows in the order they were judged in.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence

from safeguard.results.unit import UnitResult


def root(leaves: Sequence[bytes]) -> bytes:
    """The root of the tree over these leaves (32 bytes)."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return hashlib.sha256(b"\x00" + leaves[0]).digest()
    left = 1 << ((len(leaves) - 1).bit_length() - 1)
    return hashlib.sha256(b"\x01" + root(leaves[:left]) + root(leaves[left:])).digest()


def leaf(address: str, row: dict[str, object]) -> bytes:
    """A row of a unit as it is hashed."""
    facts = {"unit": address, **row}
    return json.dumps(facts, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()


def rows_root(units: Iterable[UnitResult]) -> str:
    """The root over all rows of units, hexadecimal."""
    return root([leaf(unit.address, row.model_dump(mode="json")) for unit in units for row in unit.rows]).hex()

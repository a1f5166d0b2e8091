"""Where content-addressed work is kept between runs: finished probe units of controls, and erased models half-way.

Everything in it can be deleted at any time; it is made again when needed. What is lost is the second copy of the logs
of attempts, and later reports say so. ``SAFEGUARD_CACHE`` moves it.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any


def cache_dir() -> Path:
    """``$SAFEGUARD_CACHE``, or ``safeguard`` in the user's cache directory."""
    chosen = os.environ.get("SAFEGUARD_CACHE")
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(chosen) if chosen else base / "safeguard"


def address(facts: Any) -> str:
    """sha256 of canonical JSON: the same facts always get the same address."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, ensure_ascii=False, default=str).encode()).hexdigest()

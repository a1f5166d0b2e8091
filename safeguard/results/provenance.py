"""Where a report comes from, and what binds it to the files beside it."""

from __future__ import annotations

from typing import Literal

from safeguard.results.record import Record, Verdict

PolicySource = Literal["given", "travelled"]
"""Whether the policy was given to ``certify``, or lay in the model directory, put there by whoever delivers it."""


class Provenance(Record):
    """Everything an auditor needs to repeat the run."""

    model: str
    """Directory name of the certified model."""
    model_digest: str
    base_model: str
    base_digest: str
    policy: str
    """Its name."""
    policy_digest: str
    suite: str
    suite_digest: str
    safeguard_version: str
    code_revision: str | None
    environment: dict[str, str]
    started: str
    """ISO 8601, UTC."""
    seconds: float
    units_run: int
    units_reused: int
    files: dict[str, str]
    """Every file of the model directory with its sha256."""
    policy_source: PolicySource
    travelling_policy: str | None
    """Digest of the policy in the model directory; none: there is none."""
    hardening_record: str | None
    """sha256 of ``hardening.json``, which the model's digest does not cover; none: the directory has none."""
    nonce: str
    """Hexadecimal; with the policy's seed it gives all seeds of the evaluation."""
    repetition: bool
    """Whether the nonce was given, not drawn: somebody may have known the seeds before."""
    again: bool
    """Whether this run directory had finished with the same nonce: the same evidence, looked at again."""


class Attempt(Record):
    """An earlier or this certification on the same base model and concepts, of this model or another."""

    started: str
    verdict: Verdict | None
    """None: it was begun and never finished."""
    policy_digest: str
    model_digest: str
    nonce: str


class RunUnit(Record):
    """A unit that the verdict rests on."""

    address: str
    digest: str
    """sha256 of its ``unit.json``."""
    reused: bool
    """Whether it was finished before this run began."""


class Integrity(Record):
    """What binds the report to the files beside it."""

    plan: str
    """sha256 of ``plan.json``."""
    rows: int
    """How many rows there are in all units."""
    rows_root: str
    """Root of the Merkle tree over all rows (:mod:`safeguard.results.merkle`), hexadecimal."""
    log: str
    """sha256 of this certification's line in ``attempts.jsonl``."""
    log_problems: list[str]
    """What is wrong with the logs of attempts, in words."""

"""From a name to a directory: the embedded model, a local one, or one of a hub, downloaded first if need be.

Everything that could be fetched from a hub is fetched by :func:`fetch`, and nothing leaves the machine unless a verb
has allowed it with :func:`network`: what forgets to ask stays offline.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from logging import ERROR
from pathlib import Path

from safeguard.errors import EnvironmentFault, ModelFault, UsageFault

WANTED = ["model_index.json", "*/*.json", "*/*.txt", "*/*.safetensors", "*.md", "LICEN[CS]E*", "COPYING*", "NOTICE*"]
"""What is downloaded of a model: the pipeline's folders and its terms, not the single-file checkpoints beside them."""
UNWANTED = ["*/*.*.safetensors", "*/*.*.index.json", "*flax*", "*openvino*"]
"""And not their variants (``.fp16.``, ``.non_ema.``)."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_allowed = False


@contextmanager
def network(allowed: bool) -> Iterator[None]:
    """Whether :func:`fetch` may use the network until the end of the block; outside of any block it may not."""
    global _allowed
    before, _allowed = _allowed, allowed
    try:
        yield
    finally:
        _allowed = before


@contextmanager
def no_network() -> Iterator[None]:
    """Whatever a library does meanwhile, its requests to a hub fail before they leave."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def resolve(spec: str, revision: str | None = None, *, offline: bool) -> Path:
    """The directory a model is in, downloaded first if need be; nothing of it is checked or loaded yet.

    Args:
        spec: ``reference`` (the embedded model), a local directory, or a hub id ``owner/name``; a relative directory
            that looks like one is written ``./owner/name``.
        revision: commit, tag or branch of a hub model.
        offline: use a hub model only if it was downloaded before.

    Raises:
        ModelFault: there is no such directory, hub model or revision, or access to it was not granted.
        EnvironmentFault: the hub cannot be reached, or offline and never downloaded, or the disk is full.
        UsageFault: a revision of something that has none.
    """
    local = Path(spec).expanduser()
    if spec != "reference" and is_hub_id(spec):  # never a folder of the working directory, which nobody declared
        with network(not offline):
            return fetch(spec, revision, WANTED, UNWANTED)
    if revision is not None:
        raise UsageFault(f"{spec} is not a hub model and has no revision", fix="leave the revision out")
    if spec == "reference":
        from safeguard import reference

        return reference.path()
    if not spec or not local.is_dir():
        raise ModelFault(
            "there is no such directory",
            fix="give 'reference', an existing directory, or a hub id owner/name",
            where=spec,
        )
    return local


def is_hub_id(name: str) -> bool:
    """Whether a name can be that of a repository, ``owner/name``."""
    return _HUB_ID.fullmatch(name) is not None


def fetch(name: str, revision: str | None, wanted: Sequence[str], unwanted: Sequence[str] = ()) -> Path:
    """The local directory of a hub repository, with those of its files that are wanted and that it has.

    Args:
        name: ``owner/name``.
        revision: commit, tag or branch; None: the main one.
        wanted, unwanted: shell-style patterns of file names.

    Raises:
        ModelFault: the hub has no such repository or revision, or access to it was not granted.
        EnvironmentFault: the network is not allowed (:func:`network`) and the repository was never downloaded, the hub
            cannot be reached, or the disk is full.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity(ERROR)  # each of its five tries would be a warning; what came of them is one message, ours
    try:
        found = snapshot_download(
            name,
            revision=revision,
            local_files_only=not _allowed,
            allow_patterns=list(wanted),
            ignore_patterns=list(unwanted),
        )
        return Path(found)
    except Exception as error:  # HTTP, TLS, transfer and disk errors have no common root
        raise _explained(error, name, revision) from error
    finally:
        logging.set_verbosity(verbosity)


def _explained(error: Exception, name: str, revision: str | None) -> ModelFault | EnvironmentFault:
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(error, GatedRepoError):
        advice = "accept its terms on its page, then log in with 'hf auth login'"
        return ModelFault("access to this model is not granted", fix=advice, where=name)
    if isinstance(error, RepositoryNotFoundError | HFValidationError):
        advice = "check the spelling; for a private model log in with 'hf auth login'"
        return ModelFault("the hub has no such model", fix=advice, where=name)
    if isinstance(error, RevisionNotFoundError):
        return ModelFault(f"the model has no revision {revision!r}", fix="check its history", where=name)
    if isinstance(error, LocalEntryNotFoundError):
        what = "the hub cannot be reached" if _allowed else "not downloaded yet, and this is offline"
        advice = "run once with --online and network access, or give the path of a local copy"
        return EnvironmentFault(what, fix=advice, where=name)
    advice = "check network and disk space, or give the path of a local copy"
    return EnvironmentFault(f"the download failed: {error}", fix=advice, where=name)

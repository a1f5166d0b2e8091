"""Which model a directory holds: another one than its base, and different from it only where somebody says so.

Erasing a concept changes weights of the denoiser, or of a text encoder. A tokenizer, a noise schedule or an autoencoder
that differs hides the concept without touching what draws it, and whoever downloads the model puts the base's back. So
a component that differs must be declared: by the hardening record beside the model, or by the policy
(``certification.may_differ``). Of a model without a record the denoiser may differ undeclared: it is what is certified.
"""

from __future__ import annotations

import filecmp
from collections.abc import Collection, Iterable
from pathlib import Path

from safeguard.errors import ModelFault
from safeguard.io.comparison import Difference, differences
from safeguard.io.skeleton import Skeleton
from safeguard.results.control import Component
from safeguard.results.hardening import RECORD_FILE, HardeningRecord

_DENOISER = "unet"


def components(
    model_dir: Path,
    base_dir: Path,
    *,
    record: HardeningRecord | None,
    allowed: Collection[str] = (),
    unopened: Collection[str] = (),
) -> list[Component]:
    """Every component of a model, compared with its base's.

    Args:
        record: how the model was hardened, if that is known.
        allowed: components that the policy lets differ.
        unopened: weights that may stay unopened (:class:`safeguard.io.preflight.ModelInfo`).

    Raises:
        ModelFault: the model is its own base, holds tensors that no module takes, or differs in a component that nobody
            declares; or the record is about another model.
    """
    if model_dir.samefile(base_dir):
        raise _own_base(model_dir, base_dir)
    model = Skeleton.of(model_dir)
    model.check_used()
    found = differences(model, Skeleton.of(base_dir))
    if not any(each.differs for each in found):
        raise _own_base(model_dir, base_dir)
    if record is not None:
        _check_record(record, found, model_dir)
    by_record = {_DENOISER} if record is None else set(record.components)
    listed = [_component(each, by_record, allowed, record is not None) for each in found]
    _check_declared(listed, model_dir)
    return listed + _left_out(unopened, model_dir, base_dir)


def check_base(record: HardeningRecord | None, base_digest: str, model_dir: Path, base_dir: Path) -> None:
    """The base that controls run on must be the one that was hardened.

    Raises:
        ModelFault: the record names another one.
    """
    if record is not None and record.base_digest != base_digest:
        raise ModelFault(
            f"it was made of a base model with the digest {record.base_digest}; the policy's model, {base_dir}, "
            f"on which the controls would run, has {base_digest}",
            fix="put back the files of the base model that was hardened, or harden this one",
            where=str(model_dir / RECORD_FILE),
        )


def _own_base(model_dir: Path, base_dir: Path) -> ModelFault:
    return ModelFault(
        f"the model is its own base: nothing was erased, every component is that of {base_dir}",
        fix="name the directory of the hardened model; the policy's 'model' is what it was made of",
        where=str(model_dir),
    )


def _check_record(record: HardeningRecord, found: Iterable[Difference], model_dir: Path) -> None:
    """What the record says was changed is what differs."""
    changed = {each.name: each.changed for each in found if each.changed}
    if untouched := sorted(set(record.components) - changed.keys()):
        reason = f"it says that weights of {untouched[0]} were changed, and they are those of the base model"
    elif changed.keys() == set(record.components) and sum(changed.values()) != record.checks.tensors.changed:
        reason = (
            f"it says that {record.checks.tensors.changed} tensors were changed, and {sum(changed.values())} differ"
        )
    else:
        return
    raise ModelFault(
        f"this record is not about this model: {reason}",
        fix="harden again; or, to certify the model without its record, delete the file",
        where=str(model_dir / RECORD_FILE),
    )


def _component(found: Difference, by_record: Collection[str], allowed: Collection[str], record: bool) -> Component:
    if not found.differs:
        return Component(name=found.name, differs=False, declared=True, what=found.what)
    if found.name in allowed:
        who = "the policy lets it differ"
    elif found.name in by_record and not found.settings:  # hardening changes weights, never what they are read with
        who = "declared by the hardening record" if record else "no record says how"
    else:
        return Component(name=found.name, differs=True, declared=False, what=f"{found.what}, and nobody declares it")
    return Component(name=found.name, differs=True, declared=True, what=f"{found.what}, {who}")


def _check_declared(found: Iterable[Component], model_dir: Path) -> None:
    for each in found:
        if not each.declared:
            raise ModelFault(
                f"the component {each.name!r} is not the base model's: {each.what}",
                fix="put the base model's in its place; if it is meant to differ, the certifying policy says so: "
                f"certification: {{may_differ: [{each.name}]}}",
                where=str(model_dir if each.name == "pipeline" else model_dir / each.name),
            )


def _left_out(unopened: Collection[str], model_dir: Path, base_dir: Path) -> list[Component]:
    """What may stay without being opened."""
    found = []
    for name in sorted({path.partition("/")[0] for path in unopened}):
        own = [path for path in unopened if path.startswith(f"{name}/")]
        differs = any(not _same_file(model_dir / path, base_dir / path) for path in own)
        origin = "not the base model's" if differs else "as in the base model"
        what = f"{origin}; not opened, and no part of any claim"
        found.append(Component(name=name, differs=differs, declared=True, what=what))
    return found


def _same_file(path: Path, base: Path) -> bool:
    return base.is_file() and filecmp.cmp(path, base, shallow=False)

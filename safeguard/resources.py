"""Where the files that users read and copy (``policies/``, ``probes/``, ``reports/``, ``studies/``) are found."""

from __future__ import annotations

from pathlib import Path

from safeguard.errors import EnvironmentFault, UsageFault
from safeguard.registry import suggest


def resource_dir(name: str) -> Path:
    """The folder of that name: packed into the wheel, or at the top of the repository beside the package.

    Raises:
        EnvironmentFault: it is in neither place.
    """
    package = Path(__file__).parent
    packed, beside = package / "_resources" / name, package.parent / name
    for folder in (packed, beside):  # packed first: site-packages may hold a stranger's folder of the same name
        if folder.is_dir():
            return folder
    raise EnvironmentFault(f"the folder {name}/ is missing", fix="install safeguard again", where=str(package))


def shipped(folder: str) -> dict[str, Path]:
    """The YAML files of a folder, by their names without ending."""
    return {path.stem: path for path in sorted(resource_dir(folder).glob("*.yaml"))}


def find_resource(kind: str, folder: str, name_or_path: str | Path) -> Path:
    """A shipped YAML file by its name, or a file of one's own: a path, or text with a slash or a dot in it.

    Raises:
        UsageFault: nothing of that name is shipped; ``kind`` says in the message what was looked for.
    """
    if isinstance(name_or_path, Path) or "/" in name_or_path or "." in name_or_path:
        return Path(name_or_path)
    known = shipped(folder)
    if name_or_path not in known:
        advice = f"{suggest(name_or_path, list(known))} (a {kind} of your own is named by its path, ./my-{kind}.yaml)"
        raise UsageFault(f"no shipped {kind} is called {name_or_path!r}", fix=advice, where=kind)
    return known[name_or_path]

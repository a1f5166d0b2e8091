"""Where the files that users read and copy (``policies/``, ``probes/``, ``reports/``, ``studies/``) are found."""

from __future__ import annotations

from pathlib import Path

from safeguard.errors import EnvironmentFault


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

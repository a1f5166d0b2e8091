"""safeguard: harden open-weights text-to-image models against relearning, and certify that it holds.

Importing the package is cheap: torch and diffusers are imported by the functions that need them.
"""

from safeguard import compat as _compat

_compat.install()

__version__ = "0.1.0"

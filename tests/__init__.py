"""Tests mirror the package; ``tests.tiny`` builds the models they run on."""

import safeguard  # noqa: F401 - first of all: it repairs torchvision, which diffusers looks for

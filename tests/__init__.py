"""Tests mirror the package; ``tests.tiny`` builds the models they run on."""

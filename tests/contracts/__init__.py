"""What every registered method of a kind must do, whoever added it: tests over the registries, ``tiny`` settings."""

"""``python -m safeguard`` is the ``safeguard`` command."""

from safeguard.cli import main

if __name__ == "__main__":
    main()

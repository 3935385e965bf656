"""`python -m interkd` is `interkd`."""

from interkd.cli.main import main

if __name__ == "__main__":
    main()

"""`python -m core`: the terminal's door."""

from core.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())

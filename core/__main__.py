"""`python -m core`: starts the terminal."""

from core.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())

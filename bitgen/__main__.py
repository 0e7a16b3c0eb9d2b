"""`python -m bitgen`."""

from bitgen.cli import main

if __name__ == "__main__":
    raise SystemExit(main())

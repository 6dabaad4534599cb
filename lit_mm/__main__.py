"""`python -m lit_mm`."""

from lit_mm.cli import main

if __name__ == "__main__":
    main()

"""`python -m lit_mm`."""

from lit_mm.cli import run

if __name__ == "__main__":
    run()

"""`python -m prenas`, and the `prenas` command."""

from prenas.cli import main

if __name__ == "__main__":
    main()

"""`python -m videomaker` is the console script `videomaker`."""

from .cli import main

if __name__ == "__main__":
    main()

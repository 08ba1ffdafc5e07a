"""`python -m blockrank`: the command line, for launchers that start modules."""

from blockrank.cli import main

if __name__ == "__main__":
    main()

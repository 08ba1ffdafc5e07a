"""The command line: the only reader of argv, environment and config files."""


def main() -> None:
    """Placeholder."""

"""
The command `tlsagent`, also `python -m tlsagent`: a door that opens only where the extra `cli` is installed.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; without what it is made of, say what to install and exit with status 2."""
    try:
        import rich  # noqa: F401 - it is needed on terminals alone, but half an extra would be a surprise there

        from tlsagent.cli.main import cli
    except ModuleNotFoundError as exc:
        if exc.name not in {"click", "rich"}:
            raise
        sys.stderr.write(
            f"The tlsagent command needs {exc.name}, which is missing: pip install 'tlsagent[cli,testing]'\n"
        )
        sys.exit(2)
    cli(prog_name="tlsagent")


if __name__ == "__main__":
    main()

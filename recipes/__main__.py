"""The command `keras-dsnet`: every program of this folder as a sub-command."""

import pathlib
import sys


def main():
    """Runs the sub-command that the command line names."""
    # Programs find what they share beside them, whichever way they are started.
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

    from commands import dispatch

    dispatch(sys.argv[1:])


if __name__ == "__main__":
    main()

"""`python -m asyncinspect_logging`: the same as the command `asyncinspect`."""

from .cli import main

if __name__ == "__main__":
    main()

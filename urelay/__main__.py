"""`python -m urelay` is `urelay`."""

import sys

from urelay.cli.main import main

if __name__ == "__main__":
    sys.exit(main())

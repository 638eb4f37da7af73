"""``python -m bench``, the same as ``bench/run.py``."""

import sys

from bench.main import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

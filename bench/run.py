#!/usr/bin/python3 -I
"""Runs the benchmarks: ``bench/run.py [--quick] [--only GROUP] [--docs]`` (see docs/performance.md)."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))
sys.path.insert(0, str(ROOT))

from bench.main import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

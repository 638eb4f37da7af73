#!/usr/bin/python3 -I
"""Runs the benchmarks: ``bench/run.py [--quick] [--only GROUP] [--docs]`` (see docs/performance.md)."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.main import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

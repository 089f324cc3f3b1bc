"""The budgets, measured: `python tests/bench/run.py [NAME...] [--seconds N]` prints what, budget, measured, verdict.

NAMES are any of those in `ROWS`; none: all, which takes some minutes. Every row starts the real daemon in a process of its own.
Figures that are ratios come from alternating pairs in one sitting. This is no test: nothing here fails a build.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
import traceback
from collections.abc import Callable

import bench_load
import bench_rows_http as http
import bench_rows_start as start
import bench_rows_work as work
from bench_stats import Row, busy, table

ROWS: dict[str, Callable[[float], list[Row]]] = {
    "sync": http.sync,
    "workerd": http.beside_workerd,
    "durable": http.durable,
    "cold": start.cold,
    "burst": start.burst,
    "files": work.files,
    "idle": work.idle,
    "backlog": work.backlog,
    "flood": work.flood,
}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"any of {', '.join(ROWS)}; none: all")
    parser.add_argument("--seconds", type=float, default=3.0, help="length of one spell of load (3)")
    args = parser.parse_args(argv)
    unknown = [name for name in args.names if name not in ROWS]
    if unknown:
        parser.error(f"{', '.join(unknown)}: no such row; there are {', '.join(ROWS)}")
    average = os.getloadavg()[0]
    print(f"{work.processors()} processors, Python {platform.python_version()}, {platform.system()} {platform.release()}")
    print(f"load average {average:.2f}, load generator: {bench_load.name()}, spells of {args.seconds:g} s, {http.PAIRS} pairs")
    if warning := busy(average):
        print(warning)
    rows: list[Row] = []
    for name in args.names or ROWS:
        print(f"... {name}", file=sys.stderr, flush=True)
        begun = time.monotonic()
        try:
            rows += ROWS[name](args.seconds)
        except Exception as error:
            traceback.print_exc()
            rows.append(Row(name, "", "not measured", None, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"))
        print(f"    {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
    print()
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""python benchmarks/sandbox_throughput.py [--programs 120] [--repeats 5] [--workers 2 4] [--json].

The rate of the sandbox: runs small programs, each in a sandbox of its own. Prints programs per second, the
median of the repeats, for each number of workers, and the processor time of one program.
"""

import argparse
import json
import resource
import statistics
import time
from functools import partial

from ssd_loop import sandbox


def main() -> None:
    """Measure, and print one line for each number of workers, or one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--programs", type=int, default=120, help="programs in one repeat")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--workers", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    measured = {
        "isolation": sandbox.isolation(),
        "programs": options.programs,
        "repeats": options.repeats,
        "workers": [rate(workers, options.programs, options.repeats) for workers in options.workers],
    }
    if options.json:
        print(json.dumps(measured))
        return
    print(f"sandbox {measured['isolation']}, {options.programs} programs, median of {options.repeats}")
    for row in measured["workers"]:
        print(
            f"{row['workers']:3d} workers: {row['programs_per_s']:6.1f} programs/s "
            f"({row['slowest']:.1f} to {row['fastest']:.1f}), {row['cpu_ms']:.1f} ms of processor time each"
        )


def rate(workers: int, programs: int, repeats: int) -> dict[str, float]:
    """Programs per second and processor milliseconds per program, this process included."""
    rates, cpu_ms = [], []
    jobs = [partial(sandbox.run_program, f"print({number})") for number in range(programs)]
    for _ in range(repeats):
        before, began = processor_s(), time.perf_counter()
        results = sandbox.run_all(jobs, workers=workers)
        seconds = time.perf_counter() - began
        assert [result.stdout for result in results] == [f"{number}\n" for number in range(programs)]
        rates.append(programs / seconds)
        cpu_ms.append(1000 * (processor_s() - before) / programs)
    return {
        "workers": workers,
        "programs_per_s": round(statistics.median(rates), 1),
        "slowest": round(min(rates), 1),
        "fastest": round(max(rates), 1),
        "cpu_ms": round(statistics.median(cpu_ms), 2),
    }


def processor_s() -> float:
    """Processor seconds of this process and of all that ended below it."""
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


if __name__ == "__main__":
    main()

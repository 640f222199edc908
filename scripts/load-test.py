#!/usr/bin/env python3
"""Runs many jobs at once, and real ones with little memory.

Eight runs begin at the same moment, two of each of GGUF, GPTQ, AWQ and importance, each into its own place: every output must have the
bytes of a run alone. With a model (--model DIR, of SmolLM2-135M's size) it is also quantized to Q4_K_M and to GPTQ with no more than
1 GB of address space (RLIMIT_AS, as by `ulimit -v`): everything counts, the mapped model and the program itself too, so that it is
stricter than a control group, which counts what is resident and can be set by root alone.

    scripts/load-test.py BINARY [--model DIR] [--limit BYTES] [--threads 2]

Prints a line for each part and exits with 1 if anything was wrong.
"""

import argparse
import hashlib
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

DATA = Path(__file__).resolve().parent.parent / "tests/data"
MODEL = str(DATA / "models/tiny-llama")
ROWS = ["--calibration-data", str(DATA / "text/evaluation.txt")]
PACKED = ["--group-size", "32", *ROWS, "--calibration-samples", "16", "--seq-len", "128"]

JOBS = [
    ["quantize", MODEL, "gguf", "-q", "Q4_K_M", "-o", "{dir}", "-n", "q"],
    ["quantize", MODEL, "gptq", "-q", "4bit", "-o", "{dir}", "-n", "q", *PACKED],
    ["quantize", MODEL, "awq", "-q", "4bit", "-o", "{dir}", "-n", "q", *PACKED],
    ["analyze", "importance", MODEL, "--chunks", "16", "-o", "{dir}/q.gguf"],
]


def digest(directory):
    """Names and contents of all files."""
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return [(str(f.relative_to(directory)), hashlib.sha256(f.read_bytes()).hexdigest()) for f in files]


def start(binary, job, place, limit=None):
    command = [str(binary), *(part.replace("{dir}", str(place)) for part in job)]
    bound = (lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit))) if limit else None
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, preexec_fn=bound)


def finish(child, what):
    said = child.communicate()[1]
    if child.returncode:
        sys.exit(f"{what} ends with {child.returncode}: {said}")


def together(binary):
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        expected = []
        for i, job in enumerate(JOBS):
            place = work / f"alone{i}"
            place.mkdir()
            finish(start(binary, job, place), job[1])
            expected.append(digest(place))
        started, running = time.monotonic(), []
        for i in range(2 * len(JOBS)):
            place = work / f"together{i}"
            place.mkdir()
            running.append((start(binary, JOBS[i % len(JOBS)], place), place, expected[i % len(JOBS)]))
        for child, place, right in running:
            finish(child, place.name)
            if digest(place) != right:
                sys.exit(f"{place.name}: other bytes")
        print(f"{len(running)} runs at once: the same bytes, {time.monotonic() - started:.1f} s", flush=True)


def small(binary, model, limit, threads):
    rows = [*ROWS, "--calibration-samples", "16", "--seq-len", "512"]
    for job in (
        ["quantize", model, "gguf", "-q", "Q4_K_M", "-o", "{dir}", "-n", "q"],
        ["quantize", model, "gptq", "-q", "4bit", "-o", "{dir}", "-n", "q", *rows],
    ):
        with tempfile.TemporaryDirectory() as place:
            started = time.monotonic()
            finish(start(binary, [*job, "--threads", str(threads)], place, limit), job[2])
            size = sum(f.stat().st_size for f in Path(place).rglob("*") if f.is_file())
            took = time.monotonic() - started
            print(f"{Path(model).name} to {job[2]} {job[4]} in {limit} bytes: {size} bytes, {took:.1f} s", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary", type=Path)
    parser.add_argument("--model", help="a directory in Hugging Face's format")
    parser.add_argument("--limit", type=int, default=10**9, help="bytes of address space")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    binary = options.binary.resolve()
    together(binary)
    if options.model:
        small(binary, options.model, options.limit, options.threads)


if __name__ == "__main__":
    main()

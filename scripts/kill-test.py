#!/usr/bin/env python3
"""Kills runs at random moments and lets them go on.

Each round runs a command in an empty directory, kills it with SIGKILL at a random moment, up to five times in a row, and runs it once
more to its end. Then the output must have the bytes of a run that was never disturbed, nothing else may be left, and no kill may have
cost more than the layer that was in the making.

    scripts/kill-test.py BINARY [--gptq 100] [--awq 100] [--convert 50] [--imatrix 50] [--evaluate 50] [--tune 20] [--jobs 2] [--seed N]

The runs are those of tests/data/models/tiny-llama. Prints a line for each kind and exits with 1 at the first difference.
"""

import argparse
import concurrent.futures
import hashlib
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

DATA = Path(__file__).resolve().parent.parent / "tests/data"
MODEL = DATA / "models/tiny-llama"
ROWS = ["--calibration-data", str(DATA / "text/evaluation.txt"), "--calibration-samples", "16", "--seq-len", "128"]
PACKED = ["--group-size", "32", *ROWS]
EVALUATED = ["--data", str(DATA / "text/evaluation.txt"), "--ctx", "128", "--chunks", "16", "-o", "{dir}/q.json"]

# Commands by kind; {} is the output, "q" in an empty directory.
KINDS = {
    "gptq": [["quantize", str(MODEL), "gptq", "-q", "4bit", "-o", "{dir}", "-n", "q", *PACKED]],
    "awq": [["quantize", str(MODEL), "awq", "-q", "4bit", "-o", "{dir}", "-n", "q", *PACKED]],
    "convert": [
        ["convert", str(MODEL), "gptq", "-o", "{dir}", "-n", "q", *PACKED],
        ["convert", str(MODEL), "awq", "-o", "{dir}", "-n", "q", *PACKED],
        ["convert", str(MODEL), "gguf", "-q", "Q4_K_M", "-o", "{dir}", "-n", "q.gguf"],
        ["convert", "{gguf}", "hf", "-o", "{dir}", "-n", "q"],
    ],
    "imatrix": [["analyze", "importance", str(MODEL), "--chunks", "16", "-o", "{dir}/q.gguf"]],
    "evaluate": [
        ["evaluate", "{gguf}", "--reference", str(MODEL), *EVALUATED],
        ["analyze", "quality", "{gguf}", "--reference", str(MODEL), *EVALUATED],
    ],
    "tune": [
        ["quantize", str(MODEL), "gptq", "-q", "3bit", "-o", "{dir}", "-n", "q", *PACKED, "--tune", scope, "--tune-steps", "4"]
        for scope in ("global", "block")
    ],
}

# What differs from run to run in a report.
CLOCK = re.compile(rb'"(duration_seconds|peak_memory_bytes)": [^,\n]*')


def digest(path):
    """Names and contents of a file or directory."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return [(file.name, hashlib.sha256(CLOCK.sub(b"", file.read_bytes())).hexdigest()) for file in files]


def output_of(directory):
    return [path for path in directory.iterdir() if not path.name.startswith(".") and path.suffix != ".checkpoint"]


def layers_done(directory):
    """Layers in the checkpoint; None if there is none."""
    for state in directory.glob("*.checkpoint/checkpoint.json"):
        return json.loads(state.read_bytes())["done"]
    return None


class Job:
    """A command, what an undisturbed run of it makes, and how long it takes."""

    def __init__(self, binary, arguments):
        self.binary, self.arguments = binary, arguments
        with tempfile.TemporaryDirectory() as place:
            started = time.monotonic()
            done = self.run(place)
            self.seconds = time.monotonic() - started
            if done.returncode != 0:
                sys.exit(f"an undisturbed run fails: {done.stderr}")
            self.expected = [digest(path) for path in output_of(Path(place))]

    def command(self, place):
        return [str(self.binary), *(part.replace("{dir}", str(place)) for part in self.arguments), "--threads", "1"]

    def run(self, place):
        return subprocess.run(self.command(place), capture_output=True, text=True, check=False)

    def round(self, seed):
        """Returns how many kills there were, how many of them hit a run, and what is wrong."""
        pick = random.Random(seed)
        with tempfile.TemporaryDirectory() as name:
            place, hits = Path(name), 0
            kills = pick.randint(1, 5)
            for _ in range(kills):
                before = layers_done(place) or 0
                child = subprocess.Popen(
                    self.command(place), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
                )
                try:
                    _, said = child.communicate(timeout=pick.uniform(0, 1.05 * self.seconds))
                except subprocess.TimeoutExpired:
                    child.kill()
                    _, said = child.communicate()
                    hits += 1
                wrong = self.resumed(said, before)
                if wrong:
                    return kills, hits, wrong
                after = layers_done(place)
                if after is None and output_of(place):
                    break
                if (after or 0) < before:
                    return kills, hits, f"{before} layers were done, now {after}"
            if layers_done(place) is not None or not output_of(place):
                before = layers_done(place) or 0
                last = self.run(place)
                if last.returncode != 0:
                    return kills, hits, f"the last run fails: {last.stderr}"
                wrong = self.resumed(last.stderr, before)
                if wrong:
                    return kills, hits, wrong
            elif any(place.glob("*.checkpoint")):
                # Killed between the last two steps of removing the checkpoint: the next run takes the second.
                refused = self.run(place)
                if refused.returncode != 2 or "exists" not in refused.stderr:
                    return kills, hits, f"the output is not refused: {refused.stderr}"
            left = sorted(path.name for path in place.iterdir())
            if len(left) != 1:
                return kills, hits, f"left behind: {left}"
            if [digest(path) for path in output_of(place)] != self.expected:
                return kills, hits, "other bytes"
        return kills, hits, None

    @staticmethod
    def resumed(said, before):
        """A run that found layers goes on after the last of them: only the layer in the making is done again."""
        found = re.search(r"(\d+) of \d+ layers are done", said)
        if before and found and int(found.group(1)) != before:
            return f"{before} layers were done, the next run found {found.group(1)}"
        return None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary", type=Path)
    for kind, rounds in (("gptq", 100), ("awq", 100), ("convert", 50), ("imatrix", 50), ("evaluate", 50), ("tune", 20)):
        parser.add_argument(f"--{kind}", type=int, default=rounds, metavar="ROUNDS")
    parser.add_argument("--jobs", type=int, default=2, help="runs at the same time")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    options = parser.parse_args()
    binary = options.binary.resolve()
    print(f"seed {options.seed}")
    with tempfile.TemporaryDirectory() as place:
        source = Path(place) / "source.gguf"
        made = ["quantize", str(MODEL), "gguf", "-q", "Q8_0", "-o", place, "-n", source.name]
        subprocess.run([str(binary), *made], check=True, capture_output=True)
        failed = False
        for kind, commands in KINDS.items():
            rounds = getattr(options, kind)
            jobs = [Job(binary, [part.replace("{gguf}", str(source)) for part in c]) for c in commands[:rounds]]
            started, kills, hits = time.monotonic(), 0, 0
            with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
                seeds = [f"{options.seed} {kind} {i}" for i in range(rounds)]
                work = [(pool.submit(jobs[i % len(jobs)].round, seed), seed) for i, seed in enumerate(seeds)]
                for future, seed in work:
                    tried, hit, wrong = future.result()
                    kills, hits = kills + tried, hits + hit
                    if wrong:
                        print(f"{kind}: round '{seed}': {wrong}", flush=True)
                        failed = True
            took = time.monotonic() - started
            print(f"{kind}: {rounds} rounds, {hits} runs killed, {took:.0f} s", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()

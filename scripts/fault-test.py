#!/usr/bin/env python3
"""Lets every system call on a run's files fail once.

For each kind of job a run is made with each of its reads, writes, flushes, renames, maps and so on failing in turn (tests/fault/shim.c),
once for each error that such a call has in practice. The run must end with the right exit code and no panic; the output must be
absent, or what was there before, or complete; a checkpoint must keep all of its layers; and the same command without a fault must
then give the bytes of a run that was never disturbed and leave nothing else.

    scripts/fault-test.py BINARY [--kinds gptq,awq,...] [--every 1] [--jobs 2] [--model tests/data/models/llama]

Needs cc, on Linux on x86-64. Prints a line for each kind and exits with 1 if anything was wrong.
"""

import argparse
import collections
import concurrent.futures
import errno
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "tests/data"
TEXT = str(DATA / "text/evaluation.txt")
ROWS = ["--calibration-data", TEXT, "--calibration-samples", "2", "--seq-len", "32"]
PACKED = ["-o", "{dir}", "-n", "q", "--group-size", "32", *ROWS]

# Commands by kind; {model} is the model, {dir} an empty directory in which the output is "q" or "q.*".
KINDS = {
    "gguf": ["quantize", "{model}", "gguf", "-q", "Q4_K_M", "-o", "{dir}", "-n", "q.gguf"],
    "gguf-kept": ["quantize", "{model}", "gguf", "-q", "Q4_K_M", "-o", "{dir}", "-n", "q.gguf",
                  "--checkpoint-dir", "{dir}/q.checkpoint"],
    "gptq": ["quantize", "{model}", "gptq", "-q", "4bit", *PACKED],
    "awq": ["quantize", "{model}", "awq", "-q", "4bit", *PACKED],
    "offload": ["quantize", "{model}", "gptq", "-q", "4bit", *PACKED, "--offload"],
    "convert-gguf": ["convert", "{model}", "gguf", "-q", "Q8_0", "-o", "{dir}", "-n", "q.gguf"],
    "convert-hf": ["convert", "{gguf}", "hf", "-o", "{dir}", "-n", "q"],
    "convert-awq": ["convert", "{gguf}", "awq", *PACKED],
    "imatrix": ["analyze", "importance", "{model}", "--ctx", "64", "--chunks", "4", "--calibration-data", TEXT, "-o", "{dir}/q.gguf"],
    "evaluate": ["evaluate", "{gguf}", "--reference", "{model}", "--data", TEXT, "--ctx", "64", "--chunks", "4", "-o", "{dir}/q.json"],
}

# What differs from run to run in a report.
CLOCK = re.compile(rb'"(duration_seconds|peak_memory_bytes)": [^,\n]*')

# The errors that each call is made to fail with.
WRITE = [errno.ENOSPC, errno.EIO]
ERRORS = {
    "read": [errno.EIO], "pread": [errno.EIO], "getdents": [errno.EIO], "mmap": [errno.ENOMEM], "open": [errno.EIO],
    "create": [errno.ENOSPC, errno.EROFS], "mkdir": [errno.ENOSPC, errno.EROFS], "fsync": [errno.EIO], "fdatasync": [errno.EIO],
    "rename": [errno.EIO, errno.ENOSPC], "link": [errno.EIO], "sendfile": [errno.EIO],
}  # fmt: skip


def digest(path):
    """Names and contents of a file or directory."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return [(file.name, hashlib.sha256(CLOCK.sub(b"", file.read_bytes())).hexdigest()) for file in files]


def outputs(place):
    return [p for p in sorted(place.iterdir()) if not p.name.startswith(".") and p.suffix != ".checkpoint"]


def layers_done(place):
    for state in place.glob("*.checkpoint/checkpoint.json"):
        return json.loads(state.read_bytes())["done"]
    return 0


def allowed(call, path, place):
    """The exit codes of a run in which a call fails that is not without effect."""
    reads = call in ("open", "read", "pread", "getdents")
    if reads and ".checkpoint" in path:
        return {5, 7}
    if reads and f"{path}/".startswith(f"{place}/"):
        # What was just written and cannot be read again; a directory is opened to be flushed.
        return {1, 5}
    # A text that cannot be opened is not there for the user.
    return {1, 3} if reads and path == TEXT and call == "open" else {1} if reads else {5}


class Kind:
    def __init__(self, name, binary, shim, arguments):
        self.name, self.binary, self.shim, self.arguments = name, binary, shim, arguments
        self.start, self.old = None, None
        with tempfile.TemporaryDirectory() as place:
            done, _ = self.run(place)
            if done.returncode:
                sys.exit(f"{name}: an undisturbed run fails: {done.stderr}")
            self.expected = [digest(path) for path in outputs(Path(place))]

    def run(self, place, at=0, error=0):
        """Runs the command; with the shim if `at` is not None. Returns how it ended, and the calls."""
        command = [str(self.binary), *(a.replace("{dir}", str(place)) for a in self.arguments), "--threads", "1"]
        env = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent"}
        with tempfile.TemporaryDirectory() as logs:
            log = Path(logs) / "log"
            if at is not None:
                # Only the files of the job: not those of the system.
                seen = f"{place}:{DATA}:{self.shim.parent}"
                env |= {"LD_PRELOAD": str(self.shim), "FAULT_UNDER": seen, "FAULT_LOG": str(log)}
                env |= {"FAULT_AT": str(at), "FAULT_ERRNO": str(error)}
            done = subprocess.run(command, capture_output=True, text=True, check=False, env=env, timeout=300)
            calls = [line.split(" ", 2) for line in log.read_text().splitlines()] if log.exists() else []
        return done, calls

    def prepare(self, place):
        if self.start:
            shutil.copytree(self.start, place, dirs_exist_ok=True)

    def calls(self):
        with tempfile.TemporaryDirectory() as place:
            self.prepare(place)
            return [call for _, call, _ in self.run(place, 0)[1]]

    def attempt(self, at, error):
        """Returns the call that failed with its path, the exit code, and what is wrong."""
        with tempfile.TemporaryDirectory() as name:
            place = Path(name)
            self.prepare(place)
            before = layers_done(place)
            done, calls = self.run(place, at, error)
            failed = next(((call, path) for n, call, path in calls if n.startswith("!")), None)
            if failed is None:
                return None, done.returncode, None
            wrong = self.judge(place, before, done, *failed)
            said = done.stderr.strip().splitlines()
            said = [line for line in said if line.startswith("Error")] or said[-1:]
            return (failed[0], failed[1].replace(name, "")), done.returncode, wrong and f"{wrong} ({' '.join(said)})"

    def judge(self, place, before, done, call, path):
        if "panicked" in done.stderr or done.returncode < 0:
            return f"it crashed: {done.stderr}"
        if done.returncode and done.returncode not in allowed(call, path, place):
            return f"exit code {done.returncode}"
        found = [digest(path) for path in outputs(place)]
        is_there = found == self.expected
        if done.returncode == 0:
            # A temporary directory whose contents cannot be listed stays until the next run.
            left = sorted(p.name for p in place.iterdir() if not (p.name.startswith(".") and call in ("open", "getdents")))
            if not is_there or len(left) != 1:
                return f"it succeeds, the output is {'right' if is_there else 'wrong'}, there are {left}"
        elif found and not is_there and found != self.old:
            return "something else than the output is there"
        after = layers_done(place)
        if done.returncode and after < before and not is_there:
            return f"{before} layers were done, now {after}"
        last, _ = self.run(place, None)
        refused = last.returncode == 2 and is_there and "exists" in last.stderr
        if last.returncode and not refused:
            return f"the next run fails: {last.stderr}"
        going_on = re.search(r"(\d+) of \d+ layers are done", last.stderr)
        if after and going_on and int(going_on.group(1)) != after:
            return f"{after} layers were done, the next run found {going_on.group(1)}"
        if after and not going_on and not is_there and "is complete" not in last.stderr:
            return f"{after} layers were done, the next run found none"
        left = sorted(p.name for p in place.iterdir() if not (refused and p.name.startswith(".")))
        if len(left) != 1:
            return f"left behind: {left}"
        if [digest(path) for path in outputs(place)] != self.expected:
            return "other bytes"
        return None


def walk(kind, options, pool):
    """Lets each call fail; returns whether all was well."""
    started, calls = time.monotonic(), kind.calls()
    work = [(at, e) for at, call in enumerate(calls, 1) for e in ERRORS.get(call, WRITE)][:: options.every]
    codes, wrongs = collections.Counter(), []
    for (at, error), (call, code, wrong) in zip(work, pool.map(lambda job: kind.attempt(*job), work), strict=True):
        codes[code] += 1
        if wrong:
            wrongs.append(f"  {at} {errno.errorcode[error]} {call}: {wrong}")
    took = time.monotonic() - started
    counts = ", ".join(f"{n} ended with {code}" for code, n in sorted(codes.items()))
    print(f"{kind.name}: {len(calls)} calls, {len(work)} faults: {counts}; {len(wrongs)} wrong; {took:.0f} s", flush=True)
    for wrong in wrongs:
        print(wrong, flush=True)
    return not wrongs


def half_done(kind, place):
    """Leaves in `place` what a run leaves that could not commit its second layer; whether there is a checkpoint."""
    done, calls = kind.run(place, 0)
    commits = [at for at, (_, call, path) in enumerate(calls, 1) if call == "rename" and path.endswith("/checkpoint.json")]
    shutil.rmtree(place)
    Path(place).mkdir()
    if len(commits) < 2:
        return False
    kind.run(place, commits[1], errno.ENOSPC)
    return layers_done(Path(place)) == 1


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary", type=Path)
    parser.add_argument("--kinds", default=",".join(KINDS), help="separated by commas")
    parser.add_argument("--every", type=int, default=1, help="only every n-th fault")
    parser.add_argument("--jobs", type=int, default=2, help="runs at the same time")
    parser.add_argument("--model", type=Path, default=DATA / "models/llama")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        work = Path(name)
        binary, shim, gguf = options.binary.resolve(), work / "shim.so", work / "source.gguf"
        source = str(ROOT / "tests/fault/shim.c")
        subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", str(shim), source], check=True)
        made = ["quantize", str(options.model), "gguf", "-q", "Q8_0", "-o", name, "-n", gguf.name]
        subprocess.run([str(binary), *made], check=True, capture_output=True)
        well = True
        for key in options.kinds.split(","):
            model = str(options.model.resolve())
            arguments = [a.replace("{model}", model).replace("{gguf}", str(gguf)) for a in KINDS[key]]
            kind = Kind(key, binary, shim, arguments)
            well &= walk(kind, options, pool)
            start = work / f"{key}.start"
            start.mkdir()
            if half_done(kind, start):
                kind.name, kind.start = f"{key}, going on", start
                well &= walk(kind, options, pool)
    sys.exit(not well)


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Measures what tuning gains: quantizes a model by GPTQ alone, with --tune block and with --tune global, and with AutoRound, on the
same rows, and judges all of it on the same text.

usage: scripts/compare-autoround.py MODEL CALIBRATION_TEXT EVALUATION_TEXT [--grids 4:128,3:128,2:64] [--scopes plain,block,global]
           [--tune-steps N] [--peer-steps 200,1000] [--rows 64] [--seq-len 256] [--ctx 256] [--chunks N] [--threads 2]
           [--program FILE]

--grids       bits and group size, symmetric
--scopes      of this program
--peer-steps  AutoRound's, a run for each number; none with ""
--chunks      windows of the evaluation text; all of it otherwise

AutoRound (auto-round, unless there are no --peer-steps) runs with its own defaults and writes GPTQ's format, which this program
evaluates as it evaluates its own results. Times are of quantizing alone: those of AutoRound without loading Python's packages and the
model, those of this program of the whole command.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

parser = argparse.ArgumentParser()
parser.add_argument("model", type=pathlib.Path)
parser.add_argument("calibration", type=pathlib.Path)
parser.add_argument("evaluation", type=pathlib.Path)
parser.add_argument("--grids", default="4:128,3:128,2:64")
parser.add_argument("--scopes", default="plain,block,global")
parser.add_argument("--tune-steps")
parser.add_argument("--peer-steps", default="200,1000")
parser.add_argument("--rows", type=int, default=64)
parser.add_argument("--seq-len", type=int, default=256)
parser.add_argument("--ctx", type=int, default=256)
parser.add_argument("--chunks")
parser.add_argument("--threads", default="2")
parser.add_argument("--program", default="target/release/llm-quantize")
parser.add_argument("--peer", nargs=4, help=argparse.SUPPRESS)
args = parser.parse_args()


def peer(bits, group_size, steps, out):
    """In a process of its own: what is left from one run must not slow the next."""
    import torch
    from auto_round import AutoRound
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(int(args.threads))
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    ids = tokenizer(args.calibration.read_text(), add_special_tokens=False).input_ids
    n = args.seq_len
    rows = [torch.tensor([ids[i * n : (i + 1) * n]]) for i in range(args.rows)]
    assert rows[-1].shape[1] == n, "the text is too short"
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype="auto")
    tuner = AutoRound(
        model, tokenizer, bits=int(bits), group_size=int(group_size), sym=True, iters=int(steps), dataset=rows, seqlen=n,
        nsamples=args.rows, device_map="cpu",
    )  # fmt: skip
    start = time.monotonic()
    tuner.quantize_and_save(out, format="auto_gptq")
    print(f"SECONDS {time.monotonic() - start}")


if args.peer:
    peer(*args.peer)
    sys.exit()


def found_by(*command):
    command = [args.program, *map(str, command), "--format", "json", "--verbosity", "quiet", "--threads", args.threads]
    return json.loads(subprocess.check_output(command, text=True))


def ours(grid, scope, out):
    tune = [] if scope == "plain" else ["--tune", scope, *(["--tune-steps", args.tune_steps] if args.tune_steps else [])]
    start = time.monotonic()
    report = found_by(
        "quantize", args.model, "gptq", "-q", f"{grid[0]}bit", "--group-size", grid[1], "-o", out.parent, "-n", out.name,
        "--calibration-data", args.calibration, "--calibration-samples", args.rows, "--seq-len", args.seq_len, *tune,
    )  # fmt: skip
    seconds = time.monotonic() - start
    curves = [(curve["points"], curve["kept"]) for curve in report.get("tuning", [])]
    losses = [f"{ps[0]['held_out']:.3g} to {min(p['held_out'] for p in ps):.3g} in {kept} steps" for ps, kept in curves]
    return seconds, out, f"   on held-out rows {', '.join(losses)}" if losses else ""


def theirs(grid, steps, out):
    environment = dict(os.environ, OMP_NUM_THREADS=args.threads, MKL_NUM_THREADS=args.threads)
    command = [sys.executable, __file__, *sys.argv[1:], "--peer", *grid, steps, str(out)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    seconds = [line for line in done.stdout.splitlines() if line.startswith("SECONDS")]
    if done.returncode != 0 or not seconds:
        sys.exit(f"AutoRound failed with {steps} steps:\n{done.stdout[-3000:]}")
    # The model is in a directory below, with a name of AutoRound's making.
    [config] = out.rglob("config.json")
    return float(seconds[-1].split()[1]), config.parent, ""


runs = [(f"llm-quantize, {scope}", ours, scope) for scope in args.scopes.split(",") if scope]
runs += [(f"AutoRound, {steps} steps", theirs, steps) for steps in args.peer_steps.split(",") if steps]
for grid in args.grids.split(","):
    grid = grid.split(":")
    for who, run, what in runs:
        with tempfile.TemporaryDirectory() as work:
            seconds, directory, note = run(grid, what, pathlib.Path(work) / "q")
            judged = found_by(
                "evaluate", directory, "--reference", args.model, "--data", args.evaluation, "--protocol", "full", "--ctx", args.ctx,
                *(["--chunks", args.chunks] if args.chunks else []),
            )  # fmt: skip
        print(
            f"{grid[0]} bits, groups of {grid[1]:3}: {who:22} {seconds:7.1f} s   KL {judged['kl_divergence']:.6f} "
            f"± {judged['kl_divergence_stderr']:.6f}   perplexity {judged['perplexity']:.4f} "
            f"(original {judged['reference_perplexity']:.4f}){note}",
            flush=True,
        )

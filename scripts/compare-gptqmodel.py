#!/usr/bin/env python3
"""Quantizes a model with GPTQModel and with this program, with two threads each and on the same rows, and compares the time
that it takes and what is lost.

usage: scripts/compare-gptqmodel.py MODEL CALIBRATION_TEXT EVALUATION_TEXT [--methods gptq,awq] [--bits 4] [--group-size 64]
           [--rows 64] [--seq-len 512] [--ctx 512] [--chunks 60] [--threads 2] [--program FILE] [--peer-dtype float32]

Needs gptqmodel. It runs with its own defaults, but for --peer-dtype: on a processor that has no instructions for bfloat16, torch's
products of float32 are six times as fast as those of the model's own type. What it writes is evaluated by this program, as its own results are. Times
are of quantizing alone: loading Python's packages and the model, and evaluation, are left out; of this program it is the whole command.
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
parser.add_argument("--methods", default="gptq,awq", help="of gptq, awq, awq+gptq (--solver gptq)")
parser.add_argument("--bits", type=int, default=4)
parser.add_argument("--group-size", type=int, default=64)
parser.add_argument("--rows", type=int, default=64)
parser.add_argument("--seq-len", type=int, default=512)
parser.add_argument("--ctx", type=int, default=512)
parser.add_argument("--chunks", type=int, default=60)
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--peer-dtype", help="what GPTQModel computes with, instead of what it chooses")
parser.add_argument("--program", type=pathlib.Path, help="built already")
parser.add_argument("--peer", nargs=2, help=argparse.SUPPRESS)
args = parser.parse_args()
root = pathlib.Path(__file__).resolve().parent.parent


def peer(method, out):
    """In a process of its own: what is left from one run must not slow the next."""
    import torch
    from gptqmodel import GPTQModel, QuantizeConfig
    from gptqmodel.nn_modules.qlinear.torch_awq import AwqTorchLinear
    from gptqmodel.quantization import FORMAT, METHOD
    from transformers import AutoTokenizer

    torch.set_num_threads(args.threads)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    ids = tokenizer(args.calibration.read_text(), add_special_tokens=False).input_ids
    n = args.seq_len
    rows = [ids[i * n : (i + 1) * n] for i in range(args.rows)]
    assert len(rows[-1]) == n, "the text is too short"
    rows = [{"input_ids": row, "attention_mask": [1] * n} for row in rows]
    options = {"bits": args.bits, "group_size": args.group_size}
    if method == "awq":
        options |= {"quant_method": METHOD.AWQ, "format": FORMAT.GEMM}
    dtype = {}
    if args.peer_dtype:
        dtype["dtype"] = getattr(torch, args.peer_dtype)
        # It would compute everything, and refuse to pack what did not come in 16 bits.
        AwqTorchLinear.SUPPORTS_DTYPES = [*AwqTorchLinear.SUPPORTS_DTYPES, dtype["dtype"]]
    model = GPTQModel.load(str(args.model), QuantizeConfig(**options), device="cpu", **dtype)
    start = time.monotonic()
    model.quantize(rows, batch_size=1)
    seconds = time.monotonic() - start
    model.save(out)
    print(f"SECONDS {seconds}")


if args.peer:
    peer(*args.peer)
    sys.exit()

if args.program is None:
    subprocess.run(["cargo", "build", "--release", "--locked", "--quiet", "--bins"], cwd=root, check=True)
    metadata = ["cargo", "metadata", "--format-version", "1", "--no-deps"]
    target = pathlib.Path(json.loads(subprocess.check_output(metadata, cwd=root))["target_directory"])
    args.program = target / "release/llm-quantize"


def evaluate(directory):
    command = [args.program, "evaluate", directory, "--reference", args.model, "--data", args.evaluation]
    command += ["--ctx", str(args.ctx), "--chunks", str(args.chunks), "--format", "json", "--verbosity", "quiet"]
    return json.loads(subprocess.check_output([*command, "--threads", str(args.threads)], text=True))


def ours(method, out):
    name, _, solver = method.partition("+")
    command = [args.program, "quantize", args.model, name, "-q", f"{args.bits}bit", "-o", out.parent, "-n", out.name]
    command += ["--group-size", str(args.group_size), "--calibration-data", args.calibration]
    command += ["--calibration-samples", str(args.rows), "--seq-len", str(args.seq_len), "--verbosity", "quiet"]
    command += ["--threads", str(args.threads), *(["--solver", solver] if solver else [])]
    start = time.monotonic()
    subprocess.run(command, check=True)
    return time.monotonic() - start


def theirs(method, out):
    threads = str(args.threads)
    # On two cores GPTQModel 7.7 would have one worker in a pool that needs two, and stop.
    workers = str(max(2, args.threads))
    environment = dict(
        os.environ, OMP_NUM_THREADS=threads, MKL_NUM_THREADS=threads, GPTQMODEL_CPU_WORKERS=workers
    )
    command = [sys.executable, __file__, *sys.argv[1:], "--peer", method, str(out)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    seconds = [line for line in done.stdout.splitlines() if line.startswith("SECONDS")]
    if done.returncode != 0 or not seconds:
        sys.exit(f"GPTQModel failed at {method}:\n{done.stdout[-3000:]}")
    return float(seconds[-1].split()[1])


with tempfile.TemporaryDirectory() as work:
    work = pathlib.Path(work)
    times = {}
    for method in args.methods.split(","):
        runs = [("llm-quantize", ours, method), ("GPTQModel", theirs, method.split("+")[0])]
        for who, run, what in runs:
            if (who, what) in times:
                continue
            out = work / f"{who}-{what}"
            times[who, what] = seconds = run(what, out)
            found = evaluate(out)
            print(
                f"{who:12} {what:9} {seconds:7.1f} s   perplexity {found['perplexity']:.4f} "
                f"(original {found['reference_perplexity']:.4f})   KL {found['kl_divergence']:.6f} "
                f"± {found['kl_divergence_stderr']:.6f}",
                flush=True,
            )
        ratio = times["GPTQModel", method.split("+")[0]] / times["llm-quantize", method]
        print(f"{method}: {ratio:.2f} times as fast as GPTQModel", flush=True)

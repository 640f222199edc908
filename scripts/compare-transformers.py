#!/usr/bin/env python3
"""Compares the forward pass with that of transformers on one machine in one run: tokens per second, logits included.

usage: scripts/compare-transformers.py MODEL [--windows 16] [--length 512] [--threads 2] [--rounds 3]

Needs torch and transformers. Rounds alternate between the programs, and the fastest of each counts. Also prints the peak
of one core's matrix products by torch, in float32 and bfloat16, to relate the rates to.
"""

import argparse
import pathlib
import re
import subprocess
import time

import torch
from transformers import AutoConfig, AutoModelForCausalLM

parser = argparse.ArgumentParser()
parser.add_argument("model")
parser.add_argument("--windows", type=int, default=16)
parser.add_argument("--length", type=int, default=512)
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--rounds", type=int, default=3)
args = parser.parse_args()
torch.set_num_threads(args.threads)
root = pathlib.Path(__file__).resolve().parent.parent
build = ["cargo", "bench", "--manifest-path", str(root / "Cargo.toml"), "--bench", "forward", "--no-run"]
log = subprocess.run(build, capture_output=True, text=True, check=True).stderr
bench = re.search(r"\((.*forward-[0-9a-f]+)\)", log)[1]
bench = bench if pathlib.Path(bench).is_absolute() else str(root / bench)
vocab = AutoConfig.from_pretrained(args.model).vocab_size
ids = torch.tensor(
    [[(w * 7919 + i * 104729) % vocab for i in range(args.length)] for w in range(args.windows)]
)


def transformers(dtype):
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=dtype).eval()

    def round():
        started = time.time()
        with torch.no_grad():
            for batch in ids.split(4):
                model(batch, use_cache=False)
        return ids.numel() / (time.time() - started)

    return round


def ours(compute):
    command = [bench, args.model, "--rounds", "1", "--compute", compute]
    for option in ("windows", "length", "threads"):
        command += ["--" + option, str(getattr(args, option))]

    def round():
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return float(re.search(r"best (\d+) tokens/s", out)[1])

    return round


def products(dtype, m=2048, n=2048, k=2048):
    a, b = torch.randn(m, k).to(dtype), torch.randn(n, k).to(dtype)
    times = []
    for _ in range(10):
        started = time.time()
        a @ b.T
        times.append(time.time() - started)
    return 2e-9 * m * n * k / min(times)


programs = {
    "transformers float32": transformers(torch.float32),
    "transformers bfloat16": transformers(torch.bfloat16),
    "llm-quantize f32": ours("f32"),
    "llm-quantize bf16": ours("bf16"),
}
best = dict.fromkeys(programs, 0.0)
for _ in range(args.rounds):
    for name, round in programs.items():
        best[name] = max(best[name], round())
print(f"{args.windows} windows of {args.length} tokens, {args.threads} threads, fastest of {args.rounds} rounds")
for name, rate in best.items():
    print(f"{name:24}{rate:10.0f} tokens/s{rate / best['transformers float32']:8.2f} x transformers float32")
for dtype in (torch.float32, torch.bfloat16):
    print(f"torch {dtype}, 2048 x 2048 x 2048: {products(dtype):.0f} GFLOP/s")

#!/usr/bin/env python3
"""Quantizes a model to every variant of GPTQ and AWQ, loads each with GPTQModel and with transformers on the CPU, and compares
their logits with ours.

usage: scripts/load-in-peers.py MODEL TEXT [--program FILE --logits FILE] [--only PATTERN] [--group-size N] [--tokens N]

MODEL  directory of a 16-bit model, for example tests/data/models/tiny-llama
TEXT   calibration data; its beginning is what logits are computed of

Needs numpy, torch, safetensors, gptqmodel, and transformers with optimum. The bar is an NMSE of 1e-3: kernels of other programs
multiply in 16 bits.
"""

import argparse
import json
import pathlib
import re
import subprocess
import sys
import tempfile

import numpy as np
from safetensors.numpy import load_file

parser = argparse.ArgumentParser()
parser.add_argument("model", type=pathlib.Path)
parser.add_argument("text", type=pathlib.Path)
parser.add_argument("--program", type=pathlib.Path, help="built already, with --logits")
parser.add_argument("--logits", type=pathlib.Path)
parser.add_argument("--only", default="", help="variants whose name matches a regular expression")
parser.add_argument("--group-size", default="128")
parser.add_argument("--tokens", type=int, default=128)
parser.add_argument("--samples", default="8")
args = parser.parse_args()
root = pathlib.Path(__file__).resolve().parent.parent
BAR = 1e-3

VARIANTS = {
    f"gptq {bits}bit {' '.join(options)}".strip(): ("gptq", f"{bits}bit", options)
    for bits in (2, 3, 4, 8)
    for options in (
        [],
        ["--desc-act"],
        ["--asym"],
        ["--asym", "--checkpoint-format", "gptq"],
        ["--checkpoint-format", "gptq_v2"],
    )
}
VARIANTS["gptq 4bit whole rows"] = ("gptq", "4bit", ["--group-size", "-1"])
VARIANTS["gptq 4bit with a layer in 16 bits"] = ("gptq", "4bit", ["--skip", r"layers\.0\.mlp"])
for scope, level in (("block", "2bit"), ("global", "3bit"), ("global", "4bit")):
    name = f"gptq {level} --tune {scope}"
    VARIANTS[name] = ("gptq", level, ["--tune", scope, "--tune-steps", "20"])
VARIANTS["gptq --target-bpw 3.3"] = ("gptq", None, ["--target-bpw", "3.3"])
VARIANTS["gptq 4bit with 8-bit down, --tune global"] = (
    "gptq", "4bit", ["--linear-bits", "down_proj=8bit", "--tune", "global", "--tune-steps", "20"]
)  # fmt: skip
VARIANTS["awq --target-bpw 6"] = ("awq", None, ["--target-bpw", "6"])
VARIANTS["awq 4bit --tune global"] = ("awq", "4bit", ["--tune", "global", "--tune-steps", "20"])
VARIANTS["awq 4bit --tune block"] = ("awq", "4bit", ["--tune", "block", "--tune-steps", "20"])
VARIANTS["awq 4bit"] = ("awq", "4bit", [])
VARIANTS["awq 4bit --solver gptq"] = ("awq", "4bit", ["--solver", "gptq"])
VARIANTS["awq 4bit with a layer in 16 bits"] = ("awq", "4bit", ["--skip", r"layers\.0\.mlp"])


def binaries():
    if args.program:
        return args.program.resolve(), args.logits.resolve()
    command = ["cargo", "build", "--release", "--locked", "--quiet", "--bins", "--example", "logits"]
    subprocess.run(command, cwd=root, check=True)
    metadata = ["cargo", "metadata", "--format-version", "1", "--no-deps"]
    target = pathlib.Path(json.loads(subprocess.check_output(metadata, cwd=root))["target_directory"])
    return target / "release/llm-quantize", target / "release/examples/logits"


def nmse(theirs, ours):
    theirs, ours = theirs.astype(np.float64), ours.astype(np.float64)
    return float(((theirs - ours) ** 2).sum() / (ours**2).sum())


def gptqmodel_logits(directory, ids, awq):
    import torch
    from gptqmodel import BACKEND, GPTQModel

    model = GPTQModel.load(
        str(directory), device="cpu", dtype=torch.float16, backend=BACKEND.AWQ_TORCH if awq else BACKEND.GPTQ_TORCH
    )
    with torch.no_grad():
        return model.model(torch.from_numpy(ids)).logits.float().numpy()


def transformers_logits(directory, ids, awq):
    import torch
    from transformers import AutoModelForCausalLM, AwqConfig, GPTQConfig

    # Without a GPU the loaders' automatic choice may be a kernel that is compiled first.
    config = AwqConfig(backend="torch_awq") if awq else GPTQConfig(bits=4, backend="torch")
    model = AutoModelForCausalLM.from_pretrained(
        str(directory), device_map="cpu", dtype=torch.float32, quantization_config=config
    )
    with torch.no_grad():
        return model(torch.from_numpy(ids)).logits.float().numpy()


program, logits = binaries()
failures = []
with tempfile.TemporaryDirectory() as work:
    work = pathlib.Path(work)
    text = work / "text.txt"
    # A token of these vocabularies is two bytes or more.
    text.write_bytes(args.text.read_bytes()[: 2 * args.tokens].decode(errors="ignore").encode())
    for number, (name, (method, level, options)) in enumerate(VARIANTS.items()):
        if not re.search(args.only, name):
            continue
        out = f"variant-{number}"
        command = [program, "quantize", args.model, method, "-o", work, "-n", out, "--verbosity", "quiet"]
        command += ["-q", level] if level else []
        command += ["--calibration-data", args.text, "--calibration-samples", args.samples, "--seq-len", "128"]
        if "--group-size" not in options:
            command += ["--group-size", args.group_size]
        subprocess.run([*command, *options], check=True)
        subprocess.run([logits, work / out, text, work / "logits.safetensors"], check=True)
        found = load_file(work / "logits.safetensors")
        results = []
        peers = [("GPTQModel", gptqmodel_logits)]
        rules = json.loads((work / out / "config.json").read_text())["quantization_config"].get("dynamic") or {}
        # transformers does not read other grids for some matrices.
        if not any(rule.startswith("+:") for rule in rules):
            peers.append(("transformers", transformers_logits))
        for peer, load in peers:
            try:
                error = nmse(load(work / out, found["input_ids"], method == "awq"), found["logits"])
                passed, said = error < BAR, f"NMSE {error:.1e}"
            except Exception as e:  # what a loader refuses is a result too
                passed, said = False, f"{type(e).__name__}: {str(e).splitlines()[0][:120]}"
            results.append(f"{peer} {said}")
            if not passed:
                failures.append(f"{name}: {peer} {said}")
        print(f"{name:42} {'; '.join(results)}", flush=True)

if failures:
    sys.exit("\n".join(["", "FAILED:", *failures]))

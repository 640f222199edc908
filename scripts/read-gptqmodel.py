#!/usr/bin/env python3
"""Quantizes a model with GPTQModel in all its variants, reads each with this program, and compares the dequantized weights with
GPTQModel's own.

usage: scripts/read-gptqmodel.py MODEL CALIBRATION_TEXT [--program FILE] [--only PATTERN] [--rows 8] [--seq-len 128]

Needs gptqmodel, torch and safetensors. GPTQModel multiplies in float16; this program's float32 products must round to the same.
"""

import argparse
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")  # one on two cores, which is too few for its pools

parser = argparse.ArgumentParser()
parser.add_argument("model", type=pathlib.Path)
parser.add_argument("text", type=pathlib.Path)
parser.add_argument("--program", type=pathlib.Path, help="built already")
parser.add_argument("--only", default="", help="variants whose name matches a regular expression")
parser.add_argument("--rows", type=int, default=8)
parser.add_argument("--seq-len", type=int, default=128)
parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
args = parser.parse_args()
root = pathlib.Path(__file__).resolve().parent.parent

VARIANTS = {}
for bits in (2, 3, 4, 8):
    VARIANTS[f"gptq {bits}bit"] = {"bits": bits}
    VARIANTS[f"gptq {bits}bit act-order"] = {"bits": bits, "desc_act": True, "act_group_aware": False}
    VARIANTS[f"gptq {bits}bit asymmetric"] = {"bits": bits, "sym": False}
    VARIANTS[f"gptq {bits}bit v2"] = {"bits": bits, "sym": False, "format": "gptq_v2"}
VARIANTS["gptq whole rows"] = {"bits": 4, "group_size": -1, "act_group_aware": False}
VARIANTS["gptq with overrides"] = {
    "bits": 4,
    "dynamic": {r"+:.*\.down_proj.*": {"bits": 8, "group_size": 64}, r"-:.*layers\.0\..*o_proj": {}},
}
VARIANTS["awq"] = {"bits": 4, "quant_method": "awq", "format": "gemm"}
VARIANTS["awq asymmetric"] = {"bits": 4, "quant_method": "awq", "format": "gemm", "sym": False}


def one(name, out):
    """Quantizes, loads and dequantizes; in a process of its own, whose output is GPTQModel's."""
    import torch
    from gptqmodel import BACKEND, GPTQModel, QuantizeConfig
    from safetensors.torch import save_file
    from transformers import AutoTokenizer

    options = {"group_size": 64, **VARIANTS[name]}
    awq = options.get("quant_method") == "awq"
    ids = AutoTokenizer.from_pretrained(args.model)(args.text.read_text(), add_special_tokens=False).input_ids
    n = args.seq_len
    rows = [{"input_ids": ids[i * n : (i + 1) * n], "attention_mask": [1] * n} for i in range(args.rows)]
    model = GPTQModel.load(str(args.model), QuantizeConfig(**options), device="cpu")
    model.quantize(rows, batch_size=1)
    model.save(out)
    backend = BACKEND.AWQ_TORCH if awq else BACKEND.GPTQ_TORCH
    loaded = GPTQModel.load(out, device="cpu", dtype=torch.float16, backend=backend)
    weights = {}
    for path, module in loaded.model.named_modules():
        if hasattr(module, "qweight"):
            weight = module.dequantize_weight() if hasattr(module, "dequantize_weight") else awq_weight(module)
            weights[path + ".weight"] = weight.detach().to(torch.float16).T.contiguous()
    save_file(weights, out + ".weights")


def awq_weight(module):
    from gptqmodel.quantization.awq.utils.packing_utils import dequantize_gemm

    return dequantize_gemm(module.qweight, module.qzeros, module.scales, module.bits, module.group_size)


if args.one:
    one(*args.one)
    sys.exit()

if args.program is None:
    subprocess.run(["cargo", "build", "--release", "--locked", "--quiet", "--bins"], cwd=root, check=True)
    metadata = ["cargo", "metadata", "--format-version", "1", "--no-deps"]
    target = pathlib.Path(json.loads(subprocess.check_output(metadata, cwd=root))["target_directory"])
    args.program = target / "release/llm-quantize"

import torch
from safetensors.torch import load_file

failures = []
with tempfile.TemporaryDirectory() as work:
    for number, name in enumerate(VARIANTS):
        if not re.search(args.only, name):
            continue
        out = pathlib.Path(work) / f"variant-{number}"
        command = [sys.executable, __file__, *sys.argv[1:], "--one", name, str(out)]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode != 0:
            print(f"{name:24} GPTQModel itself fails: {done.stdout.strip().splitlines()[-1][:200]}", flush=True)
            failures.append(name)
            continue
        command = [args.program, "convert", out, "hf", "--dtype", "f32", "-o", work, "-n", f"read-{number}"]
        done = subprocess.run([*command, "--verbosity", "quiet"], stderr=subprocess.PIPE, text=True)
        if done.returncode != 0:
            print(f"{name:24} {done.stderr.strip()}", flush=True)
            failures.append(name)
            continue
        theirs = load_file(f"{out}.weights")
        ours = load_file(pathlib.Path(work) / f"read-{number}" / "model.safetensors")
        different = [key for key, weight in theirs.items() if not torch.equal(ours[key].to(torch.float16), weight)]
        print(f"{name:24} {len(theirs) - len(different)} of {len(theirs)} matrices are equal", flush=True)
        if different or not theirs:
            print(f"     differs: {different[:3]}")
            failures.append(name)
sys.exit(f"FAILED: {failures}" if failures else 0)

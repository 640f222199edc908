#!/usr/bin/env python3
"""Compares what matrices lose with what the model loses, after Xu et al. (arXiv 2410.14570), on your model and texts.

usage: scripts/local-and-global.py MODEL TRAIN_TEXT HELD_OUT_TEXT -o PAGE.html [--json FILE] [--rows 128] [--seq-len 256]
           [--bits 2,3,4,8] [--methods rtn,gptq,block,global] [--group-size 128] [--windows 64] [--line 16] [--directions 2]
           [--program FILE] [--threads N]

Every model is quantized by each method with the same rows, the first of TRAIN_TEXT (their hash is printed): rounding to the
nearest code, GPTQ, and GPTQ tuned by --tune block and --tune global. Of each are measured, on those rows and on the windows of
HELD_OUT_TEXT: the squared error of all matrices' outputs per their energy (the local error, by `analyze quality`), and the KL
divergence from the original model (the global loss). Then the distance of the weights from the original ones per their length, and
the loss along the line from the original weights (0) to the quantized ones (1) and beyond, and along random directions that are as
long in every tensor. The page has all of it, in charts and a table.

Needs numpy and safetensors. What is not quantized by this program (rounding, points on lines) is a float32 model of it.
"""

import argparse
import html
import json
import math
import pathlib
import shutil
import subprocess
import sys
import tempfile

import numpy as np
from safetensors.numpy import load_file, save_file

parser = argparse.ArgumentParser(usage=__doc__.split("usage: ")[1].split("\n\n")[0])
parser.add_argument("model", type=pathlib.Path)
parser.add_argument("train", type=pathlib.Path)
parser.add_argument("held_out", type=pathlib.Path)
parser.add_argument("-o", "--page", type=pathlib.Path, required=True)
parser.add_argument("--json", type=pathlib.Path)
parser.add_argument("--rows", type=int, default=128)
parser.add_argument("--seq-len", type=int, default=256)
parser.add_argument("--bits", default="2,3,4,8")
parser.add_argument("--methods", default="rtn,gptq,block,global")
parser.add_argument("--group-size", type=int, default=128)
parser.add_argument("--windows", type=int, default=64, help="of the held-out text")
parser.add_argument("--line", type=int, default=16, help="windows that points on lines are measured on")
parser.add_argument("--directions", type=int, default=2, help="random directions for each result")
parser.add_argument("--program", default="target/release/llm-quantize")
parser.add_argument("--threads", default="2")
args = parser.parse_args()

PLACES = [-0.5, 0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5]
COLORS = {"rtn": "#999", "gptq": "#06c", "block": "#c60", "global": "#090", "random": "#c39"}
TITLES = {
    "rtn": "round to nearest", "gptq": "GPTQ", "block": "GPTQ, tuned by block", "global": "GPTQ, tuned globally",
    "random": "random directions of equal length",
}  # fmt: skip
work = tempfile.TemporaryDirectory()
out = pathlib.Path(work.name)


def run(*command):
    done = subprocess.run([args.program, "--format", "json", "--verbosity", "quiet", *map(str, command)], stdout=subprocess.PIPE)
    found = json.loads(done.stdout)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}: {found['message']}")
    return found


def quality(model, text, windows):
    """The mean local error of all matrices, and the KL divergence with its standard error."""
    found = run(
        "analyze", "quality", model, "--reference", args.model, "--data", text, "--ctx", args.seq_len, "--chunks", windows,
        "--threads", args.threads,
    )  # fmt: skip
    errors = [linear["nmse"] for layer in found["layers"] for linear in layer["linears"]]
    return {"local": sum(errors) / len(errors), "kld": found["kl_divergence"], "stderr": found["kl_divergence_stderr"]}


def divergence(model):
    """The KL divergence on some windows of the held-out text."""
    found = run(
        "evaluate", model, "--reference", args.model, "--data", args.held_out, "--ctx", args.seq_len, "--chunks", args.line,
        "--threads", args.threads,
    )  # fmt: skip
    return found["kl_divergence"]


def dense(tensors):
    """A float32 model directory with these tensors."""
    directory = out / "dense"
    shutil.rmtree(directory, ignore_errors=True)
    shutil.copytree(plain, directory)
    for file in directory.glob("*.safetensors*"):
        file.unlink()
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def read(directory):
    tensors = {}
    for file in sorted(directory.glob("*.safetensors")):
        tensors |= load_file(file)
    return tensors


def length(tensors):
    return math.sqrt(sum((tensor.astype(np.float64) ** 2).sum() for tensor in tensors.values()))


def nearest(weights, bits):
    """Symmetric codes in groups, each with the scale that its largest weight needs."""
    rows, columns = weights.shape
    size = args.group_size if columns % args.group_size == 0 else columns
    groups = weights.reshape(rows, columns // size, size)
    most = 2 ** (bits - 1)
    scales = (np.abs(groups).max(-1, keepdims=True) / (most - 0.5)).astype(np.float16).astype(np.float32)
    scales[scales == 0] = 1
    return (np.clip(np.rint(groups / scales), -most, most - 1) * scales).reshape(rows, columns)


# Through GGUF, so that names and shapes are those of every other export.
run("quantize", args.model, "gguf", "-q", "F32", "-o", out, "-n", "plain")
run("convert", out / "plain.gguf", "hf", "-o", out, "-n", "plain", "--dtype", "f32")
plain = out / "plain"
original = read(plain)
chosen = [name for name, w in original.items() if w.ndim == 2 and ".layers." in name]
calibration = None
results = []
random = np.random.default_rng(0)
for bits in map(int, args.bits.split(",")):
    for method in args.methods.split(","):
        seconds = None
        if method == "rtn":
            model = dense(original | {name: nearest(original[name], bits) for name in chosen})
            per_weight = bits + 16 / args.group_size
        else:
            tune = [] if method == "gptq" else ["--tune", method]
            found = run(
                "quantize", args.model, "gptq", "-q", f"{bits}bit", "--group-size", args.group_size, "-o", out, "-n", "q", "--force",
                "--calibration-data", args.train, "--calibration-samples", args.rows, "--seq-len", args.seq_len, *tune,
                "--threads", args.threads,
            )  # fmt: skip
            rows = found["calibration"]
            if calibration not in (None, rows):
                sys.exit("not all methods have seen the same rows")
            calibration, seconds = rows, found["duration_seconds"]
            per_weight = found["metadata"]["quantized_bits_per_weight"]
            model = out / "q"
        result = {"method": method, "bits": bits, "bits_per_weight": per_weight, "seconds": seconds}
        result["train"] = quality(model, args.train, args.rows)
        result["held_out"] = quality(model, args.held_out, args.windows)
        if method != "rtn":
            run("convert", model, "hf", "-o", out, "-n", "q-dense", "--dtype", "f32", "--force")
            model = out / "q-dense"
        change = {name: w.astype(np.float64) - original[name] for name, w in read(model).items()}
        result["distance"] = length(change) / length({name: original[name] for name in chosen})

        def at(place, change):
            moved = {name: (w + place * change[name]).astype(np.float32) for name, w in original.items()}
            return divergence(dense(moved))

        result["line"] = [[place, at(place, change)] for place in PLACES]
        result["random"] = []
        for _ in range(args.directions):
            noise = {name: random.standard_normal(delta.shape) for name, delta in change.items()}
            direction = {n: noise[n] * (np.linalg.norm(d) / np.linalg.norm(noise[n])) for n, d in change.items()}
            result["random"].append([[place, at(place, direction)] for place in PLACES])
        results.append(result)
        train, held_out = result["train"], result["held_out"]
        print(
            f"{bits} bits, {TITLES[method]:22} local {train['local']:.3e} / {held_out['local']:.3e}   KL {train['kld']:.6f} / "
            f"{held_out['kld']:.6f} ± {held_out['stderr']:.6f} (train / held out)   random {result['random'][0][5][1]:.6f}",
            flush=True,
        )


def chart(series, x_title, y_title, log_x=False, log_y=True):
    """An SVG of named lines: (name, color, points, whether they are joined)."""
    width, height, left, bottom = 760, 320, 70, 40
    points = [p for _, _, ps, _ in series for p in ps if p[1] > 0 or not log_y]

    def axis(values, log, start, end):
        values = [math.log10(v) if log else v for v in values if v > 0 or not log]
        low, high = min(values), max(values)
        span = (high - low) or 1
        return lambda v: start + ((math.log10(v) if log else v) - low) / span * (end - start)

    x = axis([p[0] for p in points], log_x, left, width - 150)
    y = axis([p[1] for p in points], log_y, height - bottom, 15)
    text = [f'<svg viewBox="0 0 {width} {height}" role="img">']
    for values, place, vertical in (([p[0] for p in points], x, False), ([p[1] for p in points], y, True)):
        for v in (min(values), max(values)):
            position = f'x="4" y="{place(v):.0f}"' if vertical else f'x="{place(v):.0f}" y="{height - 22}"'
            text.append(f"<text {position}>{v:.3g}</text>")
    text.append(f'<text x="{left}" y="{height - 4}">{html.escape(x_title)}</text><text x="4" y="{height - 4}">{html.escape(y_title)}</text>')
    for place, (name, color, shown, joined) in enumerate(series):
        shown = [(x(p[0]), y(p[1])) for p in shown if p[1] > 0 or not log_y]
        if joined:
            path = " ".join(f"{px:.1f},{py:.1f}" for px, py in shown)
            text.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.6"/>')
        text += [f'<circle cx="{px:.1f}" cy="{py:.1f}" r="3" fill="{color}"/>' for px, py in shown]
        text.append(f'<text x="{width - 140}" y="{20 + 15 * place}" fill="{color}">{html.escape(name)}</text>')
    return "\n".join([*text, "</svg>"])


def of(method):
    return [r for r in results if r["method"] == method]


methods = args.methods.split(",")
page = ['<!DOCTYPE html><html lang="en"><meta charset="utf-8"><title>Local error and global loss</title><style>']
page.append("body{font:15px/1.5 system-ui,sans-serif;max-width:900px;margin:2em auto;padding:0 1em}svg{width:100%}svg text{font:11px")
page.append(" sans-serif}td,th{padding:.1em .8em .1em 0;text-align:right}th:first-child{text-align:left}</style>")
page.append(f"<h1>Local error and global loss: {html.escape(args.model.resolve().name)}</h1>")
if calibration:
    page.append(f"<p>{calibration['rows']} rows of {calibration['seq_len']} tokens, SHA-256 {calibration['sha256']}.</p>")
page.append("<table><tr><th></th><th>bits per weight</th><th>distance</th><th>local, train</th><th>local, held out</th><th>KL, train</th>")
page.append("<th>KL, held out</th><th>random direction</th><th>seconds</th></tr>")
for r in results:
    train, held_out = r["train"], r["held_out"]
    far = np.mean([d[5][1] for d in r["random"]]) if r["random"] else float("nan")
    page.append(
        f"<tr><th>{r['bits']} bits, {TITLES[r['method']]}</th><td>{r['bits_per_weight']:.3f}</td><td>{r['distance']:.4f}</td>"
        f"<td>{train['local']:.3e}</td><td>{held_out['local']:.3e}</td><td>{train['kld']:.6f}</td><td>{held_out['kld']:.6f} ± {held_out['stderr']:.6f}</td>"
        f"<td>{far:.6f}</td><td>{'' if r['seconds'] is None else format(r['seconds'], '.0f')}</td></tr>"
    )
page.append("</table><h2>Bits per weight and loss</h2>")
pareto = [(TITLES[m], COLORS[m], [(r["bits_per_weight"], r["held_out"]["kld"]) for r in of(m)], True) for m in methods]
page.append(chart(pareto, "bits per weight", "KL divergence, held out"))
for split in ("train", "held_out"):
    page.append(f"<h2>Local error and global loss, {split.replace('_', ' ')} rows</h2>")
    both = [(TITLES[m], COLORS[m], [(r[split]["local"], r[split]["kld"]) for r in of(m)], False) for m in methods]
    page.append(chart(both, "mean relative error of matrices' outputs", "KL divergence", log_x=True))
for bits in sorted({r["bits"] for r in results}):
    page.append(f"<h2>From the original weights (0) to the quantized ones (1): {bits} bits</h2>")
    here = [r for r in results if r["bits"] == bits]
    series = [(TITLES[r["method"]], COLORS[r["method"]], r["line"], True) for r in here]
    series += [(TITLES["random"], COLORS["random"], d, True) for r in here if r["method"] == "gptq" for d in r["random"]]
    page.append(chart(series, "share of the way", "KL divergence, held out"))
args.page.write_text("\n".join(page) + "\n</html>\n")
if args.json:
    args.json.write_text(json.dumps({"calibration": calibration, "results": results}, indent=1) + "\n")
print(f"rows: {calibration}")

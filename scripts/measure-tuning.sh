#!/usr/bin/env bash
# Measures what tuning gains: KL divergence to the bf16 model and perplexity of tiny-llama, quantized with the rows and
# judged with the text of docs/gptq.md. Needs a release build; takes about half an hour on two cores.
#
#     scripts/measure-tuning.sh [plain|block|global ...]
set -euo pipefail
cd "$(dirname "$0")/.."
program=${LLM_QUANTIZE:-target/release/llm-quantize}
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
for scope in "${@:-plain block global}"; do
    for scope in $scope; do
        tune=()
        [ "$scope" = plain ] || tune=(--tune "$scope")
        for grid in "4bit 128" "3bit 128" "2bit 64"; do
            read -r level group <<<"$grid"
            "$program" quantize tests/data/models/tiny-llama gptq -q "$level" --group-size "$group" \
                --calibration-data tests/data/text/calibration.txt --calibration-samples 64 --seq-len 256 \
                "${tune[@]}" -o "$out" -n q --force --format json \
                --evaluate --data tests/data/text/evaluation.txt --protocol full --ctx 256 |
                python3 -c '
import json, sys
r = json.load(sys.stdin)
e = r["evaluation"]
curves = ", ".join("%s: %.4g -> %.4g after %d steps" % (c["name"], c["points"][0]["held_out"],
    min(p["held_out"] for p in c["points"]), c["kept"]) for c in r.get("tuning", []))
print("%-6s %s g%-3s  KL %.6f +- %.6f  perplexity %.4f  %5.0f s  %s" % (sys.argv[1], sys.argv[2], sys.argv[3],
    e["kl_divergence"], e["kl_divergence_stderr"], e["perplexity"], r["duration_seconds"], curves))
' "$scope" "$level" "$group"
        done
    done
done

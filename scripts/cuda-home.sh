#!/usr/bin/env bash
# Sets up nvcc for machines without a CUDA toolkit: NVIDIA's compiler from PyPI, 104 MB to download, nothing installed
# outside of the directory given.
#
#   scripts/cuda-home.sh DIR                  sets it up in DIR (once) and prints what to export
#   eval "$(scripts/cuda-home.sh DIR)"        and exports it
#
# All parts are pinned: their versions must fit each other, and PTX of CUDA 13.0 asks for a driver of at least 580.
set -euo pipefail

if [ $# -ne 1 ]; then
  echo "usage: $0 DIR" >&2
  exit 2
fi
mkdir -p "$1"
dir=$(cd "$1" && pwd)
venv=$dir/venv

wheels=(
  nvidia-cuda-nvcc==13.0.88      # nvcc, ptxas, fatbinary
  nvidia-nvvm==13.0.88           # cicc, libdevice
  nvidia-cuda-crt==13.0.88       # headers that nvcc includes by itself
  nvidia-cuda-runtime==13.0.96   # cuda_runtime.h
  nvidia-cuda-cccl==13.0.85      # <nv/target>, which cuda_fp16.h includes
  nvidia-cuda-cuobjdump==13.2.86 # registers, spills and machine code of what was compiled
  nvidia-cuda-nvdisasm==13.2.86
)

if [ ! -x "$dir/home/bin/nvcc" ]; then
  command -v python3 >/dev/null || { echo "$0: python3 is needed to fetch wheels from PyPI" >&2; exit 1; }
  command -v g++ >/dev/null || { echo "$0: nvcc needs g++" >&2; exit 1; }
  [ -x "$venv/bin/pip" ] || python3 -m venv "$venv" >&2
  "$venv/bin/pip" install --quiet --disable-pip-version-check --no-deps "${wheels[@]}" >&2
  ln -sfn "$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/nvidia/cu13" "$dir/home"
fi

"$dir/home/bin/nvcc" --version | grep -q 'release 13\.0' || { echo "$0: $dir/home/bin/nvcc does not run" >&2; exit 1; }
echo "export CUDA_HOME='$dir/home'"
echo "export PATH='$dir/home/bin':\"\$PATH\""

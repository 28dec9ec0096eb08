#!/usr/bin/env bash
# All that needs a GPU, in under nine minutes: tests, benchmarks, plots.
# Results go to benchmarks/results and docs, and are copied to $OUT where it is set.
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
out=${OUT:-benchmarks/results}
export TRITON_INTERPRET=0 PYTHONPATH=$PWD

$python - <<'EOF' || exit 1
import torch, triton
assert torch.cuda.is_available(), "no CUDA device"
print(torch.cuda.get_device_name(), "torch", torch.__version__, "triton", triton.__version__)
EOF

timeout 200 $python -m pytest tests/kernels/test_parity.py tests/kernels/test_selection.py \
    tests/kernels/test_compiler.py tests/kernels/test_gpu.py -q -x | tee "$out/gpu-tests.log"
tests=${PIPESTATUS[0]}
# A speed-up on a red test is no speed-up.
if [ "$tests" -eq 0 ]; then
    timeout 180 $python benchmarks/run.py --device cuda --compiled --repeats 50 | tee "$out/gpu-run.log"
    $python benchmarks/plot.py
    timeout 140 $python benchmarks/first_token.py --device cuda | tee "$out/gpu-first-token.log"
fi
if [ -n "${OUT:-}" ]; then
    cp -r benchmarks/results/*.jsonl benchmarks/results/first_token docs/benchmark-*.png "$OUT"/ 2>/dev/null
fi
exit "$tests"

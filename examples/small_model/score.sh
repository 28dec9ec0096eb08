#!/usr/bin/env bash
# The small model's scoreboard: methods, budgets and controls on scenes that it has not seen.
#   bash examples/small_model/score.sh FOLDER
set -euo pipefail
results=$(cd "$(dirname "$0")/../../benchmarks/results" && pwd)/small_model
mkdir -p "$1" "$results"
geollava scenes "$1/scenes" --first-seed 10000 --count 320 --size 1344 --scale 1.3 --part test
geollava evaluate sweep scenes-open --data "$1/scenes/test.json" --out "$1/sweep" --budgets 24,12 \
    --methods background_anchored,smaller_image,downsample,spatial_pool,random
cp "$1"/sweep/sweep.{json,md,png} "$results"

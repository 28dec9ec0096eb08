#!/usr/bin/env bash
# The small model's scoreboard: methods, budgets and controls on scenes that it has not seen.
#   bash examples/small_model/score.sh FOLDER
set -euo pipefail
mkdir -p "$1"
folder=$(cd "$1" && pwd)
cd "$(dirname "$0")/../.."
results=benchmarks/results/small_model
mkdir -p "$results"
geollava scenes "$folder/scenes" --first-seed 10000 --count 320 --size 1344 --scale 1.3 --part test
geollava evaluate sweep scenes-open --data "$folder/scenes/test.json" --out "$folder/sweep" \
    --model geollava/small_model --budgets 24,12 \
    --methods background_anchored,smaller_image,downsample,spatial_pool,random
cp "$folder"/sweep/sweep.{json,md,png} "$results"

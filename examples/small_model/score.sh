#!/usr/bin/env bash
# The small model's scoreboard: methods, budgets and controls on scenes that it has not seen.
#   bash examples/small_model/score.sh FOLDER
set -euo pipefail
mkdir -p "$1"
folder=$(cd "$1" && pwd)
cd "$(dirname "$0")/../.."
results=benchmarks/results/small_model
mkdir -p "$results"

sweep() { # name, benchmark, the sweep's other options
    geollava evaluate sweep "$2" --data "$folder/scenes/test.json" --out "$folder/$1" \
        --model geollava/small_model "${@:3}"
    for kind in json md; do # without paths of this machine
        sed "s#$folder/##g" "$folder/$1/sweep.$kind" > "$results/$1.$kind"
    done
    cp "$folder/$1/sweep.png" "$results/$1.png"
}

controls=smaller_image,downsample,spatial_pool,random
published=fastervlm,divprune
geollava scenes "$folder/scenes" --first-seed 10000 --count 320 --size 1344 --scale 1.3 --part test
sweep sweep scenes-open --budgets 24,12 --methods background_anchored,$controls,$published
sweep letters xlrs --methods background_anchored,random --budgets 24

# At the default scale of `geollava scenes` objects are smaller than those that it was trained on.
geollava scenes "$folder/smaller" --first-seed 10000 --count 320 --size 1344 --part test
geollava evaluate scenes-open --data "$folder/smaller/test.json" --out "$folder/default_scale" \
    --model geollava/small_model
sed "s#$folder/##g" "$folder/default_scale/results.json" > "$results/default_scale.json"

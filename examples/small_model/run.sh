#!/usr/bin/env bash
# The small model from nothing: about two hours on two CPU cores that multiply bfloat16.
#   bash examples/small_model/run.sh FOLDER
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
cd "$1"
cp "$here/train.yaml" .

# Scenes of 16, 36, 144 and 576 crops; every fifth is kept for testing.
geollava scenes scenes/s1344 --count 1400 --size 1344 --scale 1.3
geollava scenes scenes/s2016 --first-seed 10000 --count 250 --size 2016 --scale 1.3
geollava scenes scenes/s4032 --first-seed 20000 --count 75 --size 4032 --scale 1.3
geollava scenes scenes/s8064 --first-seed 30000 --count 25 --size 8064 --scale 1.3

python "$here/tower.py" start
geollava train train.yaml

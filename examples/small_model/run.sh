#!/usr/bin/env bash
# The small model from nothing, into FOLDER/trained/model: some two and a half hours on two CPU cores.
#   bash examples/small_model/run.sh FOLDER
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
cd "$1"
cp "$here/train.yaml" .

geollava scenes scenes/s672 --count 900 --size 672 --scale 1.3 --part train --variants 2 --no-choices
geollava scenes scenes/s1344 --first-seed 10000 --count 125 --size 1344 --scale 1.3 --part train \
    --variants 2 --no-choices

python "$here/tower.py" tower --steps 3000             # crops -> what each patch shows
python "$here/words.py" words --steps 3000             # questions -> answers, in words
python "$here/join.py" tower words scenes/s672 start   # the projector between them
python "$here/practice.py" start words scenes/s672 practiced  # with its errors, without images
geollava train train.yaml                              # and both on images

#!/usr/bin/env bash
# The small model from nothing: about two hours on two CPU cores.
#   bash examples/small_model/run.sh FOLDER
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
cd "$1"
cp "$here/train.yaml" .

scenes() { # so many conversations about each of 304 scenes of 4 crops and 132 of 16
    geollava scenes scenes/s672 --count 380 --size 672 --scale 1.3 --part train --variants "$1"
    geollava scenes scenes/s1344 --first-seed 10000 --count 165 --size 1344 --scale 1.3 --part train \
        --variants "$1"
}

scenes 3
python "$here/tower.py" tower                               # crops -> what each patch shows
python "$here/words.py" words                               # questions -> answers, in words
python "$here/join.py" tower words scenes/s672 start        # the projector between them
geollava train train.yaml                                   # both on images,
scenes 8
sed 's|^model: start|model: run/model|; s|^output: run|output: more|' train.yaml > more.yaml
geollava train more.yaml                                    # and again with other questions

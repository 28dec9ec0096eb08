#!/usr/bin/env bash
# The small model from nothing: about two and a half hours on two CPU cores.
#   bash examples/small_model/run.sh FOLDER
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
cd "$1"
cp "$here/train.yaml" .

# Scenes of 4, 16, 36 and 144 crops; every fifth is kept for testing.
geollava scenes scenes/s672 --count 2500 --size 672 --scale 1.3 --variants 3
geollava scenes scenes/s1344 --first-seed 10000 --count 625 --size 1344 --scale 1.3 --variants 3
geollava scenes scenes/s2016 --first-seed 20000 --count 60 --size 2016 --scale 1.3 --variants 3
geollava scenes scenes/s4032 --first-seed 30000 --count 15 --size 4032 --scale 1.3 --variants 3

python "$here/tower.py" tower                               # crops -> what each patch shows
python "$here/words.py" words                               # questions -> answers, in words
python "$here/join.py" tower words scenes/s672 start        # the projector between them
geollava train train.yaml                                   # all of it, on images

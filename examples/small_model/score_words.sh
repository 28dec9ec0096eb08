#!/usr/bin/env bash
# The small model on questions in many words: a thousand and more about scenes that it has not seen,
# with objects of scale 0.7 to 2; blind; at 8,064 px; and forty that no template holds.
#   bash examples/small_model/score_words.sh FOLDER [MODEL]
set -euo pipefail
mkdir -p "$1"
folder=$(cd "$1" && pwd)
model=$(cd "${2:-geollava/small_model}" && pwd)
cd "$(dirname "$0")/../.."

for size in 672 1344; do # 80 scenes
    geollava scenes "$folder/$size" --layout varied --size $size --first-seed 95000 --count 200 --part test
done
geollava scenes "$folder/8064" --layout varied --first-seed 95000 --count 150 --part test # 30 scenes
python examples/small_model/rows.py "$folder" --free tests/geollava/scenes/free_questions.json

for data in words 8064 free; do
    geollava evaluate scenes-words --data "$folder/$data.json" --out "$folder/$data-scored" \
        --model "$model"
done
geollava evaluate scenes-words --data "$folder/words.json" --out "$folder/words-blind" \
    --model "$model" --blind

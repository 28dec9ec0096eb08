#!/usr/bin/env bash
# The small model, into FOLDER/model. Each stage stops after at most 90 minutes and is gone on with
# by running this again; what is done is not done twice. Seeds are the scripts' own.
#   bash examples/small_model/run.sh FOLDER
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
cd "$1"

python "$here/tower.py" tower                          # crops -> what each patch shows
python "$here/words.py" words                          # questions -> answers, in words
python "$here/bank.py" tower bank                      # the kept tokens of 1,200 scenes
python "$here/images.py" tower words bank model        # projector and language model on them

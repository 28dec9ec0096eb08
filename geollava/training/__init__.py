"""Rows of questions and answers -> a trained checkpoint.

run.py           one run from its configuration (config.py) to its folder (folder.py); in order:
  rows.py          a data file -> `TrainingRow`
  checks.py        what can be wrong with a row; validation.py checks files of them
  tokens.py        rows -> token ids with labels, once
  packs.py         rows that share a step
  plan.py          what the run will take, said before it begins; machine.py says what it needs
  loading.py       the model with what learns in it (parts.py)
  trainer.py       transformers' Trainer, and what it must be told; samples.py asks as it goes
export.py        a run -> a whole checkpoint
"""

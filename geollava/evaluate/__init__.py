"""Benchmarks: images and questions in, scores with their protocol out.

evaluation.py      an evaluation from beginning to end; in order:
  benchmark.py       what a benchmark is, and how it is found by name: one file each in benchmarks/
  sources.py         a file, a folder or a hub name -> rows as they are
  rows.py            rows of a benchmark, what is wrong with each, and their images
  models/            opening.py loads what answers (answerer.py): our model or one of transformers
  runner.py          every row answered, resumable, over any number of processes (processes.py)
  predictions.py     one row's outcome
  results_folder.py  where settings, predictions and results lie, and what is finished of them
  scores.py          credit -> means with intervals
  report.py          results as Markdown, a plot and JSON
studies/           over evaluations
  sweep.py             methods, budgets and controls (models/controls.py) over one benchmark
  failures.py          the worst replies on a page, with what the model looked at
  ablation.py          questions asked without the tokens of their objects
  rescore.py           the same replies by every protocol in use (protocols.py)
  background_share.py  how much of scenes is background (models/background.py)
models/lmms_plugin.py  the same model within lmms-eval; lmms_model.py is the class that it makes
lmms_tasks/            two of the benchmarks as tasks of lmms-eval
"""

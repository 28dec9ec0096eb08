"""Benchmarks: images and questions in, scores with their protocol out.

benchmark.py  what a benchmark is; one file each: xlrs.py and the others
rows.py       data -> rows, what is wrong with each, and their images
answerer.py   what is asked of a model; models.py: ours, and any of transformers
runner.py     every row answered, resumable, over any number of processes (processes.py)
scores.py     replies -> means with intervals
evaluation.py these in order; report.py writes JSON, Markdown and a plot
sweep.py      methods, budgets and controls over one benchmark
failures.py   the worst replies on a page, with what the model looked at
lmms_plugin.py  the same model within lmms-eval; lmms_model.py is the class that it makes
"""

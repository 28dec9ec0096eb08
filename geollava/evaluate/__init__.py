"""Benchmarks: images and questions in, scores with their protocol out.

benchmark.py   what a benchmark is; one file each: xlrs.py, lrs_vqa.py, mme_realworld_rs.py, ...
rows.py        data -> rows, what is wrong with each, and their images
models.py      loads what answers (answerer.py): own_model.py or transformers_model.py
runner.py      every row answered, resumable, over any number of processes (processes.py)
scores.py      replies -> means with intervals
evaluation.py  these in order; report.py writes JSON, Markdown and a plot
sweep.py       methods, budgets and controls (controls.py) over one benchmark
failures.py    the worst replies on a page, with what the model looked at
ablation.py    questions asked without the tokens of their objects
background_share.py  how much of scenes is background (background.py)
lmms_plugin.py  the same model within lmms-eval; lmms_model.py is the class that it makes
commands.py    the command line, with pilot_commands.py
"""

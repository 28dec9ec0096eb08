"""Benchmarks: images and questions in, scores with their protocol out.

benchmark.py  what a benchmark is; one file each: xlrs.py and the others
rows.py       data -> rows, what is wrong with each, and their images
models.py     a loaded model that answers prompts about images, ours or any of transformers
runner.py     every row answered, resumable, over any number of processes
scores.py     replies -> means with intervals
report.py     results as JSON, Markdown and a plot
sweep.py      methods, budgets and controls over one benchmark
"""

"""XLRS-Bench captioning and grounding, in English and in Chinese, as tasks of lmms-eval.

    lmms_eval --include_path FOLDER --tasks xlrs_caption_en --model ...

FOLDER is this one: `python -c "import geollava.evaluate.lmms_tasks as t; print(*t.__path__)"`.
lmms-eval 0.7.3 finds models by an entry point (models/lmms_plugin.py), tasks by a folder alone.

task.py          a benchmark of ours as the functions that a task of lmms-eval names
captioning.py    those of xlrs-caption: xlrs_caption_en.yaml, xlrs_caption_zh.yaml
grounding.py     those of xlrs-grounding: xlrs_visual_grounding_en.yaml, ..._zh.yaml
_*_yaml          what the two languages share; lmms-eval takes no file for a task without .yaml
"""

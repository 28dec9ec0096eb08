"""The model, behind the conventions of Hugging Face.

modeling.py          forward() is these steps in order, then Qwen2:
  vision.py            pixels -> features, a chunk of crops at a time
  vision_tower.py      crops -> vision tokens, by the layers that are needed and no other
  token_reduction.py   vision tokens -> kept tokens, by tokenprune's operators
  projector.py         kept tokens -> the language model's width
host.py              the model as `tokenprune.apply` sees it
configuration.py     image_processing.py  processing.py  tokenizing.py  templates.py
checkpoint.py        files of a checkpoint, each tensor checked; published.py is the published form
generation_settings.py, registration.py, sharding.py, default_model.py
"""

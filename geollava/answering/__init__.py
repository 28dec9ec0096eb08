"""Scenes and questions -> answers.

session.py       `Session` loads and sees, `Seen` is asked: the one way a scene is asked; in order:
  loading.py       a checkpoint -> model and processor
  source.py        an image as it is given, opened when it is needed
  reduction.py     how visual tokens become fewer: a method and a number per crop
  streaming.py     crops in chunks that fit the memory, the next one read meanwhile
  encoding.py      a scene -> the tokens that are kept of it, whatever is asked
  prompts.py       a question, and what was said before -> token ids
  prefix.py        what all questions share, as the language model has read it
  memory.py        how much of that is kept, and what goes first
  generating.py    prompts -> replies
  measures.py      seconds by stage, and peak memory
conversation.py  questions that follow one another
batch.py         many scenes, many questions: scene_list.py reads them, settings.py says how
                 they are asked, finished.py holds the rows on the disk
overlay.py, geojson.py  what was kept, as a picture and on the map
"""

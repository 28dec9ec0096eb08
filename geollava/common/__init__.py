"""What the rooms share: files, one-line texts, tables, plots, pages, boxes, memory, system."""

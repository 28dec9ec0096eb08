"""What the rooms share: whole files, one-line texts, tables, plots, pages, boxes, memory."""

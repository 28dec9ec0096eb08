"""The web page: scenes of any size in a browser, what is kept of them, and questions to them.

server.py        the routes, the parts put together, start and end; in the order of a request:
  guard.py         hosts, origins, tokens and passwords: who may ask, and what the browser may load
  limits.py        how much of everything
  viewers.py       those who look, apart from each other, with their files
  opening.py       an upload, a file below a folder, or a drawn example -> a scene on the disk
  pyramid.py       its pixels as tiles, whole and reduced
  desk.py          the one thread that runs the model; who waits for it hears how far it is
  side.py          a scene under one reduction: what is kept, answers, downloads
  messages.py      what the browser is told: events, and errors without a path of this machine
static/          the page itself: plain HTML, CSS and modules, with nothing from elsewhere

Starlette and uvicorn serve it, and a canvas of our own draws it. Gradio shows an image as a whole:
an 8K scene would cross the wire as one picture and lose its pixels, layers could only be painted
into them, and its page asks other hosts for fonts. OpenSeadragon shows tiles well, but is 350 kB to
carry along and knows no grid of tokens: the layers, which are what this page is for, would be ours
to draw all the same. What it would have saved, tiles, panning and pinching, is one file of 250
lines (`static/deepzoom.js`). FastAPI adds pydantic's forms to Starlette; a dozen routes have none.
"""

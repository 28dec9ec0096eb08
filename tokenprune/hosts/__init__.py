"""What happens inside a host while a reduction is applied.

apply.py, handle.py    the door: apply(model, method) -> Handle; applied.py is what is in force
adapter.py, layout.py  what a family of hosts must say; families/ has one file for each
tower_of_host.py       the part of an adapter that knows the vision tower
generic.py             the adapter of hosts that keep transformers' conventions; mechanisms.py says
                       why others are refused, registry.py finds a model's adapter
listing.py, tested.py  which types are shown to work: tools/tested_hosts.py writes tested.json
hooks.py               installs and undoes, nothing else
step.py                one forward of one call, in order
inputs.py, prompt.py   what the host is called with; a prompt with images among it
encoder.py             the images' sizes, seen where the host encodes them
tower.py               what a method needs of the vision tower, read while it runs
merging_tower.py       tokens that merge inside the tower's layers
attention.py           reading attention, of the tower and ahead of a decoder layer
reduction.py           where tokens leave: before_model.py and between_layers.py
crops.py               an image as the tower's crops, which share its budget
reduced.py             what is left of a batch's images
images.py              each image's tokens -> the ones that remain; image_groups.py between layers
column_arguments.py    what else has columns: taken along, or refused by name
sequence.py, masks.py  the same columns out of embeddings, positions, masks and labels; windows.py
memory.py              what stays on a cache: it reports the original length
layer_arguments.py     what a layer is called with in a prompt that loses columns on its way
layer_fit.py           the same in a step whose layers hold different columns, also without a handle
training.py            labels beside `transformers.Trainer`
compat.py              all that is assumed of transformers' names and call order, checked at entry
verify.py              the masked-equivalence proof on a user's model; verifying/ holds its parts
profile.py             what a reduction takes and saves on a user's model; profiling/ likewise
"""

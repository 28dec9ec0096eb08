"""What happens inside a host's forward while a reduction is applied.

compat.py        all that is assumed of transformers' names and call order, checked at entry
encoder.py       the images' sizes and attention, seen where the host encodes them
reduction.py     each image's tokens -> the ones that remain, and their features
sequence.py      the same columns out of embeddings, positions, masks and labels
layers.py        the same between the language model's layers, for methods that work there
cache_state.py   what a KV cache of a shortened prompt must remember
hooks.py         where these enter the host's modules, and leave them again
verify.py        the masked-equivalence proof on a user's model; hidden.py hides tokens for it
"""

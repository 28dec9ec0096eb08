"""Fewer visual tokens in vLLM, by its own plug-in hooks; docs/tokenprune/serving.md says how.

`plugin.py` is the entry point. It needs vLLM, which the extra `vllm` names, and so does every other
file here but `options.py` and `hosts.py`.
"""

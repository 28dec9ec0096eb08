"""Fewer visual tokens in servers, from outside."""

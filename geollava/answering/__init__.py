"""Scene and question -> answer."""

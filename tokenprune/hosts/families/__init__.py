"""One file per family of hosts; the folder is the registry."""

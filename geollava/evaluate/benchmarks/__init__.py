"""One file per benchmark; the folder is the registry."""

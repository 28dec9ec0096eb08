"""Studies over evaluations, one file each."""

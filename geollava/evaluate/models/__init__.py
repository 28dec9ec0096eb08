"""What answers the questions of an evaluation, one file each."""

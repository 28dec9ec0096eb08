"""`python -m geollava`: what the command `geollava` runs."""

from geollava.commands.main import main

if __name__ == "__main__":
    main()

"""What every room needs: files, texts, memory, extras."""

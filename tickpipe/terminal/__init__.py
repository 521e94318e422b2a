"""Terminal output: the live view and the progress display."""

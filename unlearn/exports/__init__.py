"""Write a finished run for other programs."""

"""Tables of bad input, and of the line that each comes to."""

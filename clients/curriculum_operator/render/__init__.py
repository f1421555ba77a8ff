"""How messages look in a terminal of 80 columns or more, with or without colour."""

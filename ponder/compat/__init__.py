"""Other projects' names, numbers and files on this library."""

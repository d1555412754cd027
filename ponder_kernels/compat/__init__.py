"""Names and numbers of other libraries, on our operators: change one import line."""

"""What a student knows and writes, position by position, against its teacher, on the built-in task."""

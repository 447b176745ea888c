"""What was found: workdirs are read, their arms compared, and the comparison told as a table and as a page."""

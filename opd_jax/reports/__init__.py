"""Reports on workdirs: runs are loaded, their arms compared, and the comparison shown as a table and a page."""

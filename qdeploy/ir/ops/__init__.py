"""What nodes compute: table.py finds the row of an op by name, the other files have the rows."""

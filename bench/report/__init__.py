"""Reports: their schema, their statistics, and their rendering."""

"""Reports: their form, their statistics, and how they are shown."""

"""What evolutions did, handed on: to files, tables, loggers and trainers."""

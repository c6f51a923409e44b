"""Data of training and evaluation: sources (a data set x a task), pictures, words, batches."""

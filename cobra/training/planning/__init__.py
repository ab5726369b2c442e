"""Plans of runs: batches, memory, disk and time, from the configuration and the data at hand."""

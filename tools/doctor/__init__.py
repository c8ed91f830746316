"""The data doctor: what is wrong with a data set, found on the CPU before training."""

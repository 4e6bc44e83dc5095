"""Random small Pyro programs, held against sums and Gaussian algebra that know neither Pyro nor ppgen."""

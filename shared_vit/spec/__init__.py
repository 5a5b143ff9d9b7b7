"""A model as data: configuration, arrays, first weights, precision, keys of randomness."""

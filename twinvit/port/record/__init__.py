"""Both programs recorded: the operations, their values, and the location of each."""

"""Both programs recorded: the operations, their values, and where each stands."""

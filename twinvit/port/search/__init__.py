"""The search of a port's comparison: which operations of the reference have an equal in the port,
where the two diverge, and why."""

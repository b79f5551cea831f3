"""What jobs take along and bring back, in bulk."""

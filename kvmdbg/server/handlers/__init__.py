"""What each packet does, by capability. Handlers return what to answer; they never write it."""

"""Many files in many processes."""

"""What several of these need and none owns."""

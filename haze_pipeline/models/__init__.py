"""Networks that are not stock classes of diffusers, and the shapes of those that are."""

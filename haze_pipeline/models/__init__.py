"""Networks: the architectures of stock diffusers classes, and classes that diffusers does not have."""

"""What the mechanisms are made of: the interface and the registry, masks, λ, mixtures, the affine family."""

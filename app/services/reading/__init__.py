"""Use cases that read texts: readout, latent space, logit lens."""

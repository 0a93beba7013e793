"""Commands that read or answer many texts: activations and the like, with texts given as arguments or in files."""

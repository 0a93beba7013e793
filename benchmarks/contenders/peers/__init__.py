"""What is measured of others: each runs in an environment of its own and imports only the standard library from here."""

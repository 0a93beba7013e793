"""One module per noun of the API: its routes, checks, work and answers."""

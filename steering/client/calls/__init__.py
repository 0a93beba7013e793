"""Every route of the API as a Call, by noun."""

"""What every route needs and no noun of the API: errors, admission, request reading, events, settings, metrics, the running state."""

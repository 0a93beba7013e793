"""Input of the commands: what was given to the API's form, and files of other tools."""

"""The two ways in: the names of import fedwinnow (api) and the command line (cli)."""

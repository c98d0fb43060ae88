"""The `blockstore` command: parse, call the public API, print. One file for each noun."""

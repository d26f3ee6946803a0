"""What a user brings from outside: files for `--plugin`."""

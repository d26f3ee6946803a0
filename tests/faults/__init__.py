"""The program killed, stopped and damaged; `make faults` runs the long tier."""

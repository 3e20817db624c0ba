"""What a run costs: energy and emissions."""

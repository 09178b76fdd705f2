"""MicroVMs that cost nothing while nobody talks to them."""

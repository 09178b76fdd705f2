"""The proxy, by itself and with real microVMs."""

"""Array libraries and devices, exchange with other libraries, and checks of settings."""

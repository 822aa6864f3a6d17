"""Which library and device, exchange with other libraries, and checks of settings."""

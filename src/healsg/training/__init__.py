"""How a task is trained: the training pass, its step, the device, and the monitoring of them."""

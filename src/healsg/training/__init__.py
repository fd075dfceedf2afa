"""How a task is trained: the loop, its step, the device, and what watches them."""

"""What is sent to a device: ``device.py``, started there, and one file a runtime."""

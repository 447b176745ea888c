"""Prompts on their way from a file or a task to the device."""

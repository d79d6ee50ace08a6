"""The step beside a plain one: time and memory."""

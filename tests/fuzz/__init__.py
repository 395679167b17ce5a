"""Mutated files of every format, fed to the software in a process with limits: each must be read or refused with a message.

``python -m fuzz`` with ``tests`` on ``PYTHONPATH``, or ``scripts/fuzz``.
"""
